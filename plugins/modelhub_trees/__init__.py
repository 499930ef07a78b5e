"""Boosted trees for modelhub: XGBoost's and LightGBM's models are told and shown. They hold trees, and no tensors to convert."""

from __future__ import annotations

from collections.abc import Iterator

from modelhub import Format, hookimpl

from modelhub_trees import lightgbm, xgboost


@hookimpl
def modelhub_formats() -> Iterator[Format]:
    yield Format(
        name="xgboost",
        title="XGBoost",
        suffixes=(".ubj", ".json", ".model", ".xgb", ".bst"),
        magics=xgboost.MAGICS,
        detect=xgboost.detect,
        read=xgboost.read,
        tensors=False,
    )
    yield Format(
        name="lightgbm",
        title="LightGBM",
        suffixes=(".txt", ".lgb", ".model"),
        detect=lightgbm.detect,
        read=lightgbm.read,
        tensors=False,
    )
