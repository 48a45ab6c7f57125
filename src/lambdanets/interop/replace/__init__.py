"""Lambda layers in place of other people's convolutions and attention."""

from lambdanets.interop.replace.attention import plan_attention, replace_attention
from lambdanets.interop.replace.convs import plan_convs, replace_convs
from lambdanets.interop.replace.plan import Change, Kept, Plan
from lambdanets.interop.replace.stand_ins import LambdaMultiheadAttention, LambdaViTAttention
from lambdanets.layers.token_lambda import TokenLambda

__all__ = [
    "Change",
    "Kept",
    "LambdaMultiheadAttention",
    "LambdaViTAttention",
    "Plan",
    "TokenLambda",
    "plan_attention",
    "plan_convs",
    "replace_attention",
    "replace_convs",
]
