"""What timm hands out for ``features_only=True``: the outputs of stages."""

from __future__ import annotations

from typing import Any, cast

from timm.models._features import FeatureGetterNet
from torch import Tensor

from widefield.models._backbone import HierarchicalBackbone


class StageFeatures(FeatureGetterNet):
    """timm's getter, with what other tools ask of timm's extractors that are rebuilt from modules.

    Args:
        model: Cut behind the last stage that is asked for.
        out_indices: The last n stages, or those listed; none for the shallowest encoder of a segmentation model.
        options: timm's, with its defaults.
    """

    def __init__(self, model: HierarchicalBackbone, out_indices: int | tuple[int, ...] = 4, **options: Any) -> None:
        is_empty = not isinstance(out_indices, int) and len(out_indices) == 0
        super().__init__(model, out_indices=(0,) if is_empty else out_indices, **options)
        if is_empty:
            model.stages = model.stages[:0]
            self.feature_info = self.feature_info.from_other(())
        infos = cast("list[dict[str, Any]]", self.feature_info.get_dicts())
        self.return_layers = {info["module"]: str(info["index"]) for info in infos}
        """Modules whose outputs are returned. transformers names all of them here to get hidden states; stages behind
        the last one of `out_indices` are not computed."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) -> the outputs of the stages, in order."""
        model = cast("HierarchicalBackbone", self.model)
        wanted = [i for i in range(len(model.stages)) if model.feature_info[i]["module"] in self.return_layers]
        if not wanted:
            return []
        features = model.forward_intermediates(
            x, indices=wanted, norm=self.norm, output_fmt=self.output_fmt.value, intermediates_only=True
        )
        return cast("list[Tensor]", features)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass of training instead of keeping its activations."""
        cast("HierarchicalBackbone", self.model).set_grad_checkpointing(enable)
