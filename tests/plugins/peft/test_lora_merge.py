"""LoRA files on diffusion models: what diffusers' `fuse_lora` makes of them, whichever way the two spell their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import Modelhub
from tests.made import made_once

ADAPTERS = {"noted": "noted", "kohya": "kohya.safetensors"}


@pytest.fixture(scope="session")
def made() -> Path:
    return made_once(Path(__file__).with_name("make_loras.py"), "loras")


@pytest.mark.parametrize("label", ADAPTERS)
def test_a_pipeline_with_a_lora_is_what_fuse_lora_makes_of_it(label: str, made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    out = tmp_path / "out.safetensors"
    modelhub("merge", made / "base", "--adapter", made / ADAPTERS[label], "--scale", 0.5, "--to", "safetensors", "-o", out)
    found, wanted = load_file(out), load_file(next(made.glob(f"fused-{label}/*.safetensors")))
    before = load_file(next(made.glob("base/unet/*.safetensors")))
    assert sum(not np.array_equal(wanted[name], before[name]) for name in wanted) == 42
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[f"unet/{name}"], tensor, atol=1e-6, err_msg=name)


def test_keys_of_other_trainers_lead_to_the_same_weights(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    """Without a component, with peft's prefix, and as diffusers called attention's before it took peft."""
    layers = load_file(next((made / "noted").glob("*.safetensors")))
    tensors = {}
    for number, (name, value) in enumerate(layers.items()):
        module, _, side = name.removeprefix("unet.").partition(".lora_")
        if module.endswith((".to_q", ".to_k")):
            attention, _, part = module.rpartition(".")
            tensors[f"unet.{attention}.processor.{part}_lora.{'down' if side[0] == 'A' else 'up'}.weight"] = value
        else:
            tensors[f"{'base_model.model.' * (number // 2 % 2)}{module}.lora_{side}"] = value
    tensors |= {f"{name.partition('_lora.')[0]}_lora.alpha": np.array(6, np.float32) for name in tensors if "processor" in name}
    plain = {name: value for name, value in tensors.items() if "processor" not in name}
    save_file(
        {**tensors, **{f"{name.partition('.lora_')[0]}.alpha": np.array(6, np.float32) for name in plain}},
        tmp_path / "a.safetensors",
    )
    out = tmp_path / "out.safetensors"
    modelhub("merge", made / "base", "--adapter", tmp_path / "a.safetensors", "--scale", 0.5, "--to", "safetensors", "-o", out)
    found, wanted = load_file(out), load_file(next(made.glob("fused-noted/*.safetensors")))
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[f"unet/{name}"], tensor, atol=1e-6, err_msg=name)


def test_names_of_the_other_layout_lead_to_the_same_weights(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    out = tmp_path / "out.safetensors"
    modelhub("merge", made / "single.safetensors", "--adapter", made / "kohya.safetensors", "--scale", 0.5, "-o", out, "--to",
             "safetensors")  # fmt: skip
    found, wanted = load_file(out), load_file(next(made.glob("fused-kohya/*.safetensors")))
    assert sorted(float(tensor.sum()) for tensor in found.values()) == pytest.approx(
        sorted(float(tensor.sum()) for tensor in wanted.values()), abs=1e-4
    )


def test_lycoris_products_are_those_of_its_modules(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    """The steps of LyCORIS's ``functional/loha.py`` and ``lokr.py``, written out."""
    rng = np.random.default_rng(0)
    before = load_file(next(made.glob("base/unet/*.safetensors")))
    names = [
        "mid_block.resnets.0.conv1",
        "mid_block.attentions.0.proj_in",
        "mid_block.resnets.1.conv1",
        "time_embedding.linear_1",
    ]
    shapes = [before[f"{name}.weight"].shape for name in names]

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rows, columns = shapes[0][0], int(np.prod(shapes[0][1:]))
    loha = {
        "hada_w1_a": random(rows, 3),
        "hada_w1_b": random(3, columns),
        "hada_w2_a": random(rows, 3),
        "hada_w2_b": random(3, columns),
    }
    loha["alpha"] = np.float32(1.5)
    rows, columns = shapes[1][:2]
    lokr = {"lokr_w1": random(4, 2), "lokr_w2": random(rows // 4, columns // 2, *shapes[1][2:]), "alpha": np.float32(7)}
    rows, columns = shapes[2][:2]
    split = {
        "lokr_w1": random(2, 2),
        "lokr_w2_a": random(rows // 2, 5),
        "lokr_w2_b": random(5, columns // 2 * 9),
        "alpha": np.float32(2),
    }
    full = {"diff": random(*shapes[3])}
    deltas = [
        (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"]) * (1.5 / 3),
        np.kron(lokr["lokr_w1"], lokr["lokr_w2"].reshape(lokr["lokr_w2"].shape[0], -1)),  # neither is a product: no scale
        np.kron(split["lokr_w1"], split["lokr_w2_a"] @ split["lokr_w2_b"]) * (2 / 5),
        full["diff"],
    ]
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.{part}": np.asarray(value)
        for name, parts in zip(names, (loha, lokr, split, full), strict=True)
        for part, value in parts.items()
    }
    save_file(tensors, tmp_path / "lycoris.safetensors")
    assert modelhub("show", tmp_path / "lycoris.safetensors", "--json").json["metadata"]["method"] == "loha + lokr + full"
    out = tmp_path / "out.safetensors"
    modelhub(
        "merge", made / "base", "--adapter", tmp_path / "lycoris.safetensors", "--scale", 0.5, "--to", "safetensors", "-o", out
    )
    found = load_file(out)
    for name, shape, delta in zip(names, shapes, deltas, strict=True):
        wanted = before[f"{name}.weight"] + 0.5 * delta.reshape(shape)
        np.testing.assert_allclose(found[f"unet/{name}.weight"], wanted, atol=1e-5, rtol=1e-5, err_msg=name)


def test_convolutions_in_three_parts_and_magnitudes(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    """The steps of LyCORIS's ``functional/general.py`` (``rebuild_tucker``) and ComfyUI's ``weight_decompose``, written out."""
    rng = np.random.default_rng(1)
    before = load_file(next(made.glob("base/unet/*.safetensors")))

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def tucker(core: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.einsum("ijkl,ip,jr->prkl", core, left, right)

    def bring(weight: np.ndarray, delta: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        whole = weight + delta.reshape(weight.shape)
        axes = tuple(axis for axis in range(whole.ndim) if axis != (1 if lengths.shape[0] == 1 else 0))
        return whole * (lengths / np.sqrt((whole**2).sum(axes, keepdims=True))) - weight

    shape = before["mid_block.resnets.0.conv1.weight"].shape
    width = before["time_embedding.linear_1.weight"].shape
    rows, columns = shape[:2]
    low, high = random(2, width[1]), random(width[0], 2)
    parts: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
    one = {
        "lora_down.weight": random(3, columns, 1, 1),
        "lora_mid.weight": random(3, 3, 3, 3),
        "lora_up.weight": random(rows, 3, 1, 1),
    }
    parts["mid_block.resnets.0.conv1"] = (
        one,
        tucker(one["lora_mid.weight"], one["lora_up.weight"].reshape(rows, 3).T, one["lora_down.weight"].reshape(3, columns)),
    )
    two = {f"hada_w{i}_{side}": random(3, rows if side == "a" else columns) for i in "12" for side in "ab"}
    two |= {f"hada_t{i}": random(3, 3, 3, 3) for i in "12"}
    first, second = (tucker(two[f"hada_t{i}"], two[f"hada_w{i}_a"], two[f"hada_w{i}_b"]) for i in "12")
    parts["mid_block.resnets.0.conv2"] = two, first * second
    three = {"lokr_w1": random(4, 4), "lokr_w2_a": random(2, rows // 4), "lokr_w2_b": random(2, columns // 4)}
    three["lokr_t2"] = random(2, 2, 3, 3)
    small = tucker(three["lokr_t2"], three["lokr_w2_a"], three["lokr_w2_b"])
    parts["mid_block.resnets.1.conv1"] = three, np.kron(three["lokr_w1"], small.reshape(rows // 4, -1))
    for name, lengths in (("1.conv2", random(1, columns, 1, 1)), ("1.conv1", random(rows, 1, 1, 1))):
        where = f"{'mid_block.resnets' if name == '1.conv2' else 'up_blocks.1.resnets'}.{name}"
        weight = before[f"{where}.weight"]
        lengths = np.abs(random(*(size if kept > 1 else 1 for size, kept in zip(weight.shape, lengths.shape, strict=True))))
        a = random(3, weight.shape[1], 3, 3)
        b = random(weight.shape[0], 3)
        parts[where] = (
            {"lora_down.weight": a, "lora_up.weight": b[..., None, None], "dora_scale": lengths},
            bring(weight, b @ a.reshape(3, -1), lengths),
        )
    magnitudes = np.abs(random(width[0]))
    parts["time_embedding.linear_1"] = (
        {"lora_down.weight": low, "lora_up.weight": high, "lora_magnitude_vector": magnitudes},
        bring(before["time_embedding.linear_1.weight"], high @ low, magnitudes[:, None]),
    )
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.{part}": np.ascontiguousarray(value)
        for name, (own, _) in parts.items()
        for part, value in own.items()
    }
    save_file(tensors, tmp_path / "three.safetensors")
    out = tmp_path / "out.safetensors"
    modelhub(
        "merge", made / "base", "--adapter", tmp_path / "three.safetensors", "--scale", 0.5, "--to", "safetensors", "-o", out
    )
    found = load_file(out)
    for name, (_, delta) in parts.items():
        wanted = before[f"{name}.weight"] + 0.5 * delta.reshape(before[f"{name}.weight"].shape)
        np.testing.assert_allclose(found[f"unet/{name}.weight"], wanted, atol=2e-5, rtol=2e-5, err_msg=name)


def test_the_base_is_found_in_the_catalog_by_names_and_shapes(made: Path, tmp_path: Path, modelhub: Modelhub) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file({"down_blocks.0.resnets.0.conv1.weight": np.ones((8, 4, 3, 3), np.float32)}, other / "small.safetensors")
    modelhub("scan", made / "base", made / "single.safetensors", other)
    bases = modelhub("show", made / "kohya.safetensors", "--json").json["bases"]
    assert sorted(Path(base["path"]).name for base in bases) == ["base", "single.safetensors"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {"lora_unet_nowhere.lora_down.weight": (4, 8), "lora_unet_nowhere.lora_up.weight": (8, 4)},
            "no module lora_unet_nowhere",
        ),
        (
            {"lora_unet_conv_in.lora_down.weight": (4, 9), "lora_unet_conv_in.lora_up.weight": (8, 4)},
            "it changes a matrix [8, 9]",
        ),
        ({"lora_unet_conv_in.lora_down.weight": (4, 9)}, "its up is missing"),
        ({"lora_unet_conv_in.hada_w1_a": (4, 9), "lora_unet_conv_in.hada_w1_b": (9, 4)}, "its hada_w2_a is missing"),
        ({"lora_unet_conv_in.oft_blocks": (1, 4, 4)}, "no part of a LoRA"),
        (
            {
                "lora_unet_conv_in.lora_down.weight": (4, 36),
                "lora_unet_conv_in.lora_up.weight": (32, 4),
                "lora_unet_conv_in.dora_scale": (1, 5),
            },
            "neither of 32 outputs nor of 4 inputs",
        ),
        (
            {
                "lora_unet_conv_in.lora_down.weight": (4, 4, 1, 1),
                "lora_unet_conv_in.lora_mid.weight": (3, 4, 3, 3),
                "lora_unet_conv_in.lora_up.weight": (32, 4, 1, 1),
            },
            "do not fit each other",
        ),
        ({"lora_unet_conv_in.lora_down.weight": (0, 36), "lora_unet_conv_in.lora_up.weight": (32, 0)}, "which is no matrix"),
    ],
)
def test_what_does_not_fit_is_refused(
    names: dict[str, tuple[int, ...]], said: str, made: Path, tmp_path: Path, modelhub: Modelhub
) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, tmp_path / "bad.safetensors")
    words = (
        "merge",
        made / "base",
        "--adapter",
        tmp_path / "bad.safetensors",
        "--to",
        "safetensors",
        "-o",
        tmp_path / "out.safetensors",
    )
    assert said in modelhub(*words, status=3).stderr
