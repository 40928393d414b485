"""The models of test_deployment.py; run as a script, what they give where maxl_l2l can't be imported.

python -I tests/deployed.py FOLDER loads what the tests have saved there and writes outputs.pt beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import BertConfig, BertForSequenceClassification

PREFIX = "network.module."
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 3),
    )


def resnet() -> nn.Module:
    return resnet18(num_classes=3)


def backbone() -> nn.Module:
    model = resnet18()
    model.fc = nn.Identity()
    return model


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=3, **SIZES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn,
    "resnet18": resnet,
    "backbone": lambda: nn.Sequential(backbone(), nn.Linear(512, 3)),
    "bert": bert,
    "compiled": cnn,
    "fit": cnn,
    "lightning": cnn,
}
"""What is deployed, as it is before any training, by how it is trained."""


def inputs(name: str, size: int) -> Any:
    """What a model takes, so many samples."""
    numbers = torch.Generator().manual_seed(size)
    if name != "bert":
        return torch.randn(size, 3, 16, 16, generator=numbers)
    words = torch.randint(1, 30, (size, 5), generator=numbers)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def output(model: Callable[..., Any], x: Any) -> Tensor:
    with torch.no_grad():
        found = model(**x) if isinstance(x, dict) else model(x)
    logits: Tensor = getattr(found, "logits", found)
    return logits


def of_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def filled(name: str, state: dict[str, Tensor]) -> nn.Module:
    """An untrained model with the state of a trained one, for inference."""
    model = MODELS[name]()
    model.load_state_dict(state)
    return model.eval()


def loaded(folder: Path, name: str) -> dict[str, Callable[..., Any]]:
    """The model from each file that was saved of it."""
    found: dict[str, Callable[..., Any]] = {
        "state_dict": filled(name, torch.load(folder / f"{name}.pt", weights_only=True)),
        "safetensors": filled(name, load_file(folder / f"{name}.safetensors")),
        "export": torch.export.load(folder / f"{name}.pt2").module(),
    }
    if name == "resnet18":
        found["pickle"] = torch.load(folder / "pickled.pt", weights_only=False).eval()
    if name == "bert":
        found["save_pretrained"] = BertForSequenceClassification.from_pretrained(folder / "pretrained").eval()
    if name in ("fit", "backbone"):
        saved = torch.load(folder / f"{name}.run", weights_only=True)["parts"]["maxl"]
        state = of_prefix(saved, PREFIX)
        if name == "backbone":
            head = of_prefix(saved, "network.primary_head.")
            state = {f"0.{key}": value for key, value in state.items()} | {f"1.{key}": v for key, v in head.items()}
        found["checkpoint"] = filled(name, state)
    if name == "lightning":
        saved = torch.load(folder / "lightning.ckpt", weights_only=True)["state_dict"]
        found["checkpoint"] = filled(name, of_prefix(saved, f"maxl.{PREFIX}"))
    return found


class Missing(MetaPathFinder):
    """Finds no maxl_l2l, wherever it may be installed."""

    def find_spec(self, fullname: str, *place: Any) -> None:
        if fullname.partition(".")[0] == "maxl_l2l":
            raise ModuleNotFoundError(f"{fullname} is not here")


def main() -> None:
    sys.meta_path.insert(0, Missing())
    try:
        import maxl_l2l  # noqa: F401
    except ModuleNotFoundError:
        folder = Path(sys.argv[1])
    else:
        raise AssertionError("maxl_l2l can be imported")
    torch.set_num_threads(1)
    outputs = {
        name: {kind: output(model, inputs(name, 6)) for kind, model in loaded(folder, name).items()} for name in MODELS
    }
    assert not any(module.partition(".")[0] == "maxl_l2l" for module in sys.modules)
    torch.save(outputs, folder / "outputs.pt")


if __name__ == "__main__":
    main()
