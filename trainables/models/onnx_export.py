"""A classifier as an ONNX file, checked against the model it was made of."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.models.layers import LogitsOnly
from torch import Tensor, nn

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-4  # of a probability
LARGEST_IN_ONE_FILE = 1.9e9  # bytes: protobuf's limit is 2 GiB; above, the weights lie in a file of their own


class OnnxError(Exception):
    """A model has no ONNX file that computes the same; the message says why."""


def write_onnx(model: nn.Module, folder: Path, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Write ``model.onnx`` to a folder, and run it on rows that the model classifies too.

    Its inputs are ``input_ids`` and ``attention_mask`` (B, T), int64 and of any size; its output is ``logits`` (B, C).

    Args:
        model: A classifier on the CPU, in eval mode.
        folder: The model folder. It gets no file where there is an error.
        batches: The rows to check: token ids and mask (B, T) each. The first one is traced.

    Returns:
        The largest difference of a probability.

    Raises:
        OnnxError: The model cannot be exported, or the file computes something else.
    """
    checked = list(batches)
    with tempfile.TemporaryDirectory(prefix="tailsweep-") as temporary:
        file = Path(temporary) / ONNX_FILE
        try:
            _export(model, checked[0], file)
            difference = max(_differences(model, file, checked))
        except Exception as error:  # whatever an architecture or the exporter makes of it
            cause = error.__cause__ or error  # the exporter's own message tells how to report it
            raise OnnxError(f"{type(model).__name__} has no ONNX file: {describe_error(cause)}") from error
        if not difference <= TOLERANCE:
            raise OnnxError(
                f"{type(model).__name__} has no ONNX file: its probabilities would differ by {difference:.1e}, above "
                f"{TOLERANCE:g}"
            )
        for part in sorted(file.parent.iterdir()):
            (folder / part.name).write_bytes(part.read_bytes())  # a new file, with the umask's mode
    return difference


def _export(model: nn.Module, inputs: tuple[Tensor, Tensor], file: Path) -> None:
    size = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    with _quiet():
        torch.onnx.export(
            LogitsOnly(model),
            inputs,
            file,
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(size, size),
            external_data=num_bytes > LARGEST_IN_ONE_FILE,
            verbose=False,
        )


def _differences(model: nn.Module, file: Path, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """Yield the largest difference of a probability of each batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for input_ids, mask in batches:
            logits = model(input_ids=input_ids, attention_mask=mask).logits
            computed = session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()})[0]
            yield float((torch.from_numpy(computed).softmax(1) - logits.softmax(1)).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on packages of its own from the sweep's output."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
