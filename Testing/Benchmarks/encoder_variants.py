"""What makes the encoder faster on a CPU? Each way as a ratio to the product's own eager encoder, in one run.

    python Testing/Benchmarks/encoder_variants.py [--bundle kidney-mr] [--threads 1] [--rounds 5] [--output FILE]

Measured are the ways that this machine and this environment have: contiguous memory in place of channels-last,
bfloat16, torch.compile, int8 (dynamic, of the linear layers), ONNX Runtime (float32, and int8 dynamic) and OpenVINO
(float32, bfloat16 where there is a matrix unit). What is not installed or not possible here is said in the report. The
ways take turns, and the ratio is that of the medians of the processor time. The sample's masks with the encoder in
question are compared with those of the product (DSC); a way is worth having with a ratio well below 1 and a DSC of at
least 0.995. None of the packages is a dependency: onnx onnxscript onnxruntime openvino are installed beside.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from SPDSegmentLib.evaluation.metrics import dice
from SPDSegmentLib.inference.acceleration import on_cores
from SPDSegmentLib.inference.predictor import Predictor
from SPDSegmentLib.models.bundle import find_bundle
from SPDSegmentLib.networks import tiny_vit
from with_network import sample

BATCH = 4
Encode = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """This machine or environment has not what a way needs."""


def need(*modules: str) -> None:
    """Raise :class:`Unavailable` where a module is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed")


def as_they_are(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """The product's own: eager float32, channels-last, wide layers in tiles, slices of its own for each core."""
    return lambda images: on_cores(encoder, images)


def all_on_each_layer(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """All cores on each layer of all slices; one core works as in the product."""
    return encoder


@contextmanager
def plain_layers(*names: str) -> Iterator[None]:
    """Within this context the encoder does without tiles, or without its own fused layers as well."""
    kept = {name: getattr(tiny_vit, name) for name in names}
    for name in names:
        setattr(tiny_vit, name, lambda *_: False)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(tiny_vit, name, function)


def without_tiles(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """As before there were tiles: a layer and its GELU are one pass over memory."""

    def encode(images: Tensor) -> Tensor:
        with plain_layers("works_in_tiles"):
            maps: Tensor = encoder(images)
        return maps

    return encode


def bfloat16(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """All of the encoder in bfloat16."""
    lower = copy.deepcopy(encoder).to(torch.bfloat16)
    return lambda images: lower(images.to(torch.bfloat16)).float()


def compiled(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """torch.compile, which needs a C++ compiler."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        raise Unavailable("no C++ compiler")
    compiled_encoder = torch.compile(copy.deepcopy(encoder), dynamic=False)

    def encode(images: Tensor) -> Tensor:
        with plain_layers("works_in_tiles", "_can_fuse"):  # the compiler fuses by itself
            maps: Tensor = compiled_encoder(images)
        return maps

    return encode


def int8_dynamic(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """Linear layers in int8, quantized as they run; their fused GELU goes."""
    plain = copy.deepcopy(encoder)
    for module in plain.modules():  # the fused layer reads float weights
        if type(module).__name__ == "Mlp":
            module.forward = _mlp_forward.__get__(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    return quantized


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    mapped: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))
    return mapped


def _onnx(encoder: nn.Module, example: Tensor, folder: Path) -> Path:
    need("onnx", "onnxscript")
    path = folder / "encoder.onnx"
    if not path.exists():
        plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        with torch.enable_grad(), torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with gradients on no layer is fused by our own hands
            example = example.clone().requires_grad_(False)
            torch.onnx.export(
                plain, (example,), str(path), dynamo=True, input_names=["images"], external_data=False, verbose=False
            )
    return path


def _session(path: Path) -> Encode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def onnx_runtime(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """ONNX Runtime, float32."""
    need("onnxruntime")
    return _session(_onnx(encoder, example, folder))


def onnx_runtime_int8(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """ONNX Runtime, products in int8, quantized as they run."""
    need("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "int8.onnx"
    quantize_dynamic(
        str(_onnx(encoder, example, folder)), str(path), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
    )
    return _session(path)


def _openvino(encoder: nn.Module, example: Tensor, folder: Path, precision: str) -> Encode:
    need("openvino")
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(openvino.Core().read_model(_onnx(encoder, example, folder)), "CPU", settings)
    request = model.create_infer_request()
    return lambda images: torch.from_numpy(np.array(request.infer([images.numpy()])[0]))


def openvino_float32(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """OpenVINO, float32."""
    return _openvino(encoder, example, folder, "f32")


def openvino_bfloat16(encoder: nn.Module, example: Tensor, folder: Path) -> Encode:
    """OpenVINO, bfloat16; without a matrix unit it would compute in float32 all the same."""
    if not matrix_unit():
        raise Unavailable("no matrix unit")
    return _openvino(encoder, example, folder, "bf16")


WAYS: dict[str, Callable[[nn.Module, Tensor, Path], Encode]] = {
    "eager (the product)": as_they_are,
    "eager, all cores on each layer": all_on_each_layer,
    "eager, without tiles": without_tiles,
    "bfloat16": bfloat16,
    "torch.compile": compiled,
    "int8 dynamic": int8_dynamic,
    "ONNX Runtime": onnx_runtime,
    "ONNX Runtime int8 dynamic": onnx_runtime_int8,
    "OpenVINO": openvino_float32,
    "OpenVINO bfloat16": openvino_bfloat16,
}


def matrix_unit() -> bool:
    """Whether this CPU has AMX."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def measure(bundle_name: str, rounds: int, chosen: list[str]) -> dict[str, Any]:
    """Seconds of a batch, ratio to the product and DSC of the sample's mask for every way."""
    predictor = Predictor.load(find_bundle(bundle_name), "cpu", "float32", BATCH)
    stack, clicks = sample(predictor)
    model: Any = predictor.engine.model
    encoder = model.image_encoder
    size = predictor.engine.image_size
    images = torch.rand(BATCH, 1, size, size)
    found: dict[str, Any] = {}
    ways: dict[str, Encode] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in chosen:
            begun = time.perf_counter()
            try:
                ways[name] = WAYS[name](encoder, images, Path(folder))
                ways[name](images)
            except Exception as error:
                found[name] = {"not measured": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                ways.pop(name, None)
                print(name, found[name], file=sys.stderr)
                continue
            found[name] = {"prepared_in_s": round(time.perf_counter() - begun, 1)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, encode in ways.items():
                begun = time.process_time()
                encode(images)
                times[name].append(time.process_time() - begun)
        for name in ways:
            each = statistics.median(times[name])
            found[name] |= {"seconds_per_slice": each / BATCH, "ratio": each / statistics.median(times[chosen[0]])}
            print(name, found[name], file=sys.stderr)
        truth: np.ndarray | None = None
        for name, encode in ways.items():
            model.encode = _padded(encode)
            mask = predictor.open(stack).segment(clicks).mask
            truth = mask if truth is None else truth
            found[name]["dsc"] = dice(mask, truth)
            print(name, found[name], file=sys.stderr)
    return found


def _padded(encode: Encode) -> Encode:
    """A way that takes whole batches only, for any number of slices."""

    def run(images: Tensor) -> Tensor:
        whole = torch.cat((images, images[:1].expand(BATCH - len(images), -1, -1, -1)))
        return encode(whole.contiguous())[: len(images)]

    return run


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="kidney-mr")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {
        "machine": platform.processor() or platform.machine(),
        "matrix_unit": matrix_unit(),
        "threads": options.threads,
        "torch": torch.__version__,
        "bundle": options.bundle,
        "encoders": measure(options.bundle, options.rounds, options.ways),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
