"""The files a traced model can become: each format writes itself, and runs what it has written."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lambdanets.interop.export.quiet import quiet
from lambdanets.interop.export.tracing import layer_of_node

# Seconds to import, so it is imported where it is used.
if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["FORMATS", "INPUTS", "METADATA_FILE", "Format"]

# By the number of an input's sizes: what it is, and the names of its axes.
INPUTS = {
    1: ("sequence", ("batch", "channels", "length")),
    2: ("image", ("batch", "channels", "height", "width")),
    3: ("volume", ("batch", "channels", "depth", "height", "width")),
}
METADATA_FILE = "metadata.json"
_LEAST_OPSET = 18

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Args:
        name: what ``format=`` takes.
        suffix: of the files.
        packages: what must be installed beside this package's own dependencies.
        check_opset: raises a ValueError for an opset that it does not have.
        write: (program, path, metadata, opset) -> None.
        load: path -> the model in the file as a function.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]
    check_opset: Callable[[int | None], None]
    write: Callable[[ExportedProgram, Path, Mapping[str, Any], int | None], None]
    load: Callable[[Path], Run]

    def require_packages(self) -> None:
        """Raise an ImportError with the command that installs what is missing."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ModuleNotFoundError(
                f"the format {self.name!r} needs {', '.join(missing)}; install with: pip install 'lambdanets[export]' "
                f"(or pip install {' '.join(self.packages)})",
                name=missing[0],
            )


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, Any], opset: int | None) -> None:
    exported = _to_onnx(program, metadata["input"], metadata["output"], opset)
    model = exported.model
    _name_axes(model)
    if opset is not None and model.opset_imports.get("") != opset:
        raise ValueError(
            f"opset must be one that the installed onnxscript can write this model in, got {opset}; without opset it "
            f"is {model.opset_imports.get('')}"
        )
    model.producer_name = "lambdanets"
    for key, value in metadata.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    exported.save(str(path), external_data=False)


def _check_onnx_opset(opset: int | None) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _LEAST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {_LEAST_OPSET} to {newest}, which the installed onnx knows, got {opset}")


def _to_onnx(program: ExportedProgram, given: str, output: str, opset: int | None) -> Any:
    import torch.onnx

    try:
        with quiet():
            return torch.onnx.export(
                program, (), dynamo=True, input_names=[given], output_names=[output], opset_version=opset
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(_no_onnx_form(program, error)) from error


def _no_onnx_form(program: ExportedProgram, error: Exception) -> str:
    """Return a message that names the operation without an ONNX form and, where known, the layer that calls it."""
    chain: BaseException | None = error
    text = ""
    while chain is not None:
        text += f"{chain}\n"
        chain = chain.__cause__ or chain.__context__
    named = re.search(r"op='([\w.]+)'", text)
    if named is None:
        return f"the model has no ONNX form: {str(error).splitlines()[0]}"
    op = named[1]
    # By its last name: aten.special_bessel_j0.default has become prims.bessel_j0 in the exporter.
    name = op.split(".")[1]
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and name in str(node.target)]
    where = layer_of_node(nodes[0]) if nodes else "the model"
    return f'{where} has no ONNX form: it calls {op}, which PyTorch cannot write as ONNX; format="torch-export" can'


def _name_axes(model: Any) -> None:
    """Name the input's axes, as batch, height and width, here and in what follows from them."""
    shape = model.graph.inputs[0].shape
    axes = INPUTS[len(shape) - 2][1]
    names = {str(dim.value): name for dim, name in zip(shape, axes, strict=True) if not isinstance(dim, int)}
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = type(shape)(
                [dim if isinstance(dim, int) else _renamed(dim.value, pattern, names) for dim in value.shape]
            )


def _renamed(dim: str | None, pattern: re.Pattern[str], names: Mapping[str, str]) -> str | None:
    return None if dim is None else pattern.sub(lambda match: names[match[1]], dim)


def _values(graph: Any) -> Iterator[Any]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors have no common class.
    except Exception as error:
        raise ValueError(
            f"the installed ONNX Runtime ({onnxruntime.__version__}) does not take the file that was written, so it "
            f"was not kept; another opset may do: {error}"
        ) from error
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _check_no_opset(opset: int | None) -> None:
    if opset is not None:
        raise ValueError(f'opset is for format="onnx", got {opset} with "torch-export"; leave it out')


def _write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, Any], opset: int | None) -> None:
    import torch.export

    text = json.dumps(metadata, ensure_ascii=False, indent=2)
    # PyTorch's own writer ends the process where the disk is full.
    written = io.BytesIO()
    with quiet():
        torch.export.save(program, written, extra_files={METADATA_FILE: text})
    path.write_bytes(written.getbuffer())


def _load_program(path: Path) -> Run:
    import torch.export

    with quiet():
        return torch.export.load(path).module()


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", ".onnx", ("onnx", "onnxscript", "onnxruntime"), _check_onnx_opset, _write_onnx, _load_onnx),
        Format("torch-export", ".pt2", (), _check_no_opset, _write_program, _load_program),
    )
}
