"""The summaries at the end of a training, an evaluation or a prediction."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lambdanets.console import one_line, print_whole, shell_word
from lambdanets.training.display.progress import format_seconds, print_notes
from lambdanets.training.engine.faults import resume_command
from lambdanets.training.engine.fit import TrainingResult
from lambdanets.training.inference.evaluate import Evaluation
from lambdanets.training.inference.predict import Prediction

__all__ = ["print_evaluation", "print_predictions", "print_training"]

_FILES = (
    ("best.safetensors", "weights with the highest validation accuracy"),
    ("last.safetensors", "weights of the last finished epoch"),
    ("config.json", "recipe, data, input transform, versions"),
    ("split.csv", "the images of each part"),
    ("metrics.csv", "losses and accuracies of every epoch"),
    ("curves.png", "the same as a picture"),
    ("tensorboard", "the same for TensorBoard"),
    ("result.json", "the scores"),
    ("samples", "some test images"),
    ("skipped.csv", "images that could not be read, and what stood in their place"),
    ("profile", "the trace of some steps"),
)


def print_training(console: Console, result: TrainingResult) -> None:
    """The test accuracy, the files of the run and what to type next."""
    path = result.run.path
    has_best = (path / "best.safetensors").exists()
    if result.stopped_by is not None:
        steps = f" and {result.steps:,} steps" if result.steps else ""
        kept = "all is saved" if result.saved else "the last step was not finite, what was before it is saved"
        print_whole(console, f"Stopped after {result.epochs} of {result.run.recipe.epochs} epochs{steps}; {kept}.")
    if result.test is not None:
        wrong = round((1 - result.test.top1) * result.test.images)
        print_whole(console)
        print_whole(
            console,
            f"Test accuracy {result.test.top1:.2%} ({wrong} of {result.test.images:,} images wrong), "
            f"loss {result.test.loss:.3f}, in {format_seconds(result.seconds)}",
        )
    if result.validation_top1 is None and has_best:
        print_whole(console, "No epoch was finished.")
    elif result.validation_top1 is not None:
        best = f"epoch {result.best_epoch}, {result.validation_top1:.2%} on the validation images"
        print_whole(console, f"Best weights: {best}")
    print_whole(console, f"Run folder: {one_line(path)}")
    for name, what in _FILES:
        if name == "best.safetensors" and result.validation_top1 is None:
            what = "weights as they were when it stopped"
        if (path / name).exists():
            print_whole(console, f"  {name:<17} {what}")
    print_whole(console)
    print_whole(console, "Next:")
    word = shell_word(path)
    if result.stopped_by is not None:
        print_whole(console, f"  {resume_command(path, result.processes)}")
    if not has_best:
        return
    print_whole(console, f"  lambdanets evaluate {word}")
    if result.example is not None:
        print_whole(console, f"  lambdanets predict {word} {shell_word(result.example)}")


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The scores, the most frequent mistakes and the files."""
    scores = evaluation.scores
    table = Table()
    for heading in ("top-1", "top-5", "loss"):
        table.add_column(heading, justify="right")
    table.add_row(f"{scores.top1:.2%}", f"{scores.top5:.2%}", f"{scores.loss:.4f}")
    print_whole(console, one_line(evaluation.source))
    print_notes(console, evaluation.notes)
    console.print(table)
    for true, guess, count in evaluation.mistakes:
        print_whole(console, f"  {count} × {one_line(true)} taken for {one_line(guess)}")
    for file in evaluation.files:
        print_whole(console, f"  {one_line(file)}")


def print_predictions(console: Console, predictions: Sequence[Prediction]) -> None:
    """Each image with its most probable classes, a line each; names are whole, whatever the width."""
    for prediction in predictions:
        print_whole(console, one_line(prediction.image))
        for name, probability in prediction.classes:
            print_whole(console, f"  {probability:7.2%}  {one_line(name)}")
