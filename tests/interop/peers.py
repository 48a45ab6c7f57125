"""The computation, names and orders of two public implementations that cannot be installed, written anew.

d-li14/lambda.pytorch (lambda_layer.py, lambda_resnet.py) and leaderj1001/LambdaNetworks (model.py of 16 November 2020).
What matters here is what they do to numbers: parameter names and shapes, channel orders, paddings, biases, pooling,
and that the second one reads its values in two orders. Nothing of this is used by the library.
"""

import torch
from torch import nn
from torch.nn import functional as F


class DLi14Layer(nn.Module):
    """conv_qkv gives queries (h, k), keys (u, k), values (u, v); the position convolution has a bias."""

    def __init__(self, d, dk=16, du=1, heads=4, r=23, stride=1):
        super().__init__()
        self.dk, self.du, self.heads, self.dv, self.stride = dk, du, heads, d // heads, stride
        self.conv_qkv = nn.Conv2d(d, heads * dk + dk * du + self.dv * du, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * dk)
        self.norm_v = nn.BatchNorm2d(self.dv * du)
        self.lambda_conv = nn.Conv3d(du, dk, (1, r, r), padding=(0, r // 2, r // 2))
        if stride > 1:
            self.avgpool = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x):
        b, _, height, width = x.shape
        widths = [self.heads * self.dk, self.du * self.dk, self.du * self.dv]
        q, k, v = self.conv_qkv(x).split(widths, dim=1)
        q = self.norm_q(q).reshape(b, self.heads, self.dk, -1)
        k = k.reshape(b, self.du, self.dk, -1).softmax(-1)
        v = self.norm_v(v).reshape(b, self.du, self.dv, -1)
        content = torch.einsum("bukm,buvm->bkv", k, v)
        position = self.lambda_conv(v.unflatten(-1, (height, width))).flatten(3)
        out = torch.einsum("bhkn,bkv->bhvn", q, content) + torch.einsum("bhkn,bkvn->bhvn", q, position)
        out = out.reshape(b, -1, height, width)
        return self.avgpool(out) if self.stride > 1 else out


class LambdaConv(nn.Module):
    """leaderj1001's layer: keys (k, u); values (v, u) for the content, (u, v) for the position convolution."""

    def __init__(self, in_channels, out_channels, heads=4, k=16, u=1, m=23):
        super().__init__()
        self.heads, self.k, self.u, self.v, self.m = heads, k, u, out_channels // heads, m
        self.queries = nn.Sequential(nn.Conv2d(in_channels, heads * k, 1, bias=False), nn.BatchNorm2d(heads * k))
        self.keys = nn.Sequential(nn.Conv2d(in_channels, k * u, 1, bias=False))
        self.values = nn.Sequential(nn.Conv2d(in_channels, self.v * u, 1, bias=False), nn.BatchNorm2d(self.v * u))
        self.embedding = nn.Parameter(torch.randn(k, u, 1, m, m) if m > 0 else torch.randn(k, u))

    def forward(self, x):
        b, _, height, width = x.shape
        q = self.queries(x).reshape(b, self.heads, self.k, -1)
        k = self.keys(x).reshape(b, self.k, self.u, -1).softmax(-1)
        values = self.values(x)
        v = values.reshape(b, self.v, self.u, -1)
        content = torch.einsum("bkum,bvum->bkv", k, v)
        if self.m > 0:
            again = values.reshape(b, self.u, self.v, height, width)
            position = F.conv3d(again, self.embedding, padding=(0, self.m // 2, self.m // 2)).flatten(3)
        else:
            position = torch.einsum("ku,bvun->bkvn", self.embedding, v)
        out = torch.einsum("bhkn,bkv->bhvn", q, content) + torch.einsum("bhkn,bkvn->bhvn", q, position)
        return out.reshape(b, -1, height, width)


class DLi14Block(nn.Module):
    def __init__(self, inplanes, planes, stride, layer_args):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = DLi14Layer(planes, stride=stride, **layer_args)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        if stride != 1 or inplanes != 4 * planes:
            shortcut = nn.Conv2d(inplanes, 4 * planes, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


class LeaderBlock(nn.Module):
    """The pool stands behind the layer wherever the block has a shortcut of its own, at stride 1 too."""

    def __init__(self, inplanes, planes, stride, layer_args):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        changes = stride != 1 or inplanes != 4 * planes
        pool = [nn.AvgPool2d(3, stride, padding=1)] if changes else []
        self.conv2 = nn.Sequential(LambdaConv(planes, planes, **layer_args), *pool, nn.BatchNorm2d(planes), nn.ReLU())
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = nn.Sequential()
        if changes:
            self.shortcut = nn.Sequential(nn.Conv2d(inplanes, 4 * planes, 1, stride=stride), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        out = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class _ResNet(nn.Module):
    """The stem, stages and pooling that both share with torchvision's ResNet."""

    block: type[nn.Module]

    def __init__(self, layers, layer_args):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inplanes = 64
        for stage, blocks in enumerate(layers):
            planes = 64 << stage
            made = []
            for index in range(blocks):
                made.append(self.block(inplanes, planes, 2 if stage and not index else 1, layer_args))
                inplanes = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class DLi14ResNet(_ResNet):
    block = DLi14Block

    def __init__(self, layers=(3, 4, 6, 3), num_classes=1000, **layer_args):
        super().__init__(layers, layer_args)
        self.fc = nn.Linear(2048, num_classes)


class LeaderResNet(_ResNet):
    block = LeaderBlock

    def __init__(self, layers=(3, 4, 6, 3), num_classes=1000, **layer_args):
        super().__init__(layers, layer_args)
        self.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(2048, num_classes))


@torch.no_grad()
def randomise(module):
    """Numbers in every parameter and statistic, so that no term is zero and none hides behind another."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    return module


@torch.no_grad()
def calibrate(model, x):
    """Statistics of these images for the batch-norms: a layer is cubic in its input, and numbers would run away."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model
