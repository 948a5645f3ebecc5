"""Tables that people published are sound to us, and their inverses are found.

Excerpts from public bug reports: NVIDIA/TensorRT issues 681 (ResNet-18) and 2958 (a face network),
rmccorm4/tensorrt-utils issue 23 (ResNet-50), ultralytics issue 14121 (YOLOv8).
"""

from __future__ import annotations

import numpy as np
import pytest

from fdda_deploy.calib_cache.inversion import evidence
from fdda_deploy.calib_cache.trt_table import parse

RESNET18 = """TRT-7000-EntropyCalibration2
data: 3caa54fc
(Unnamed Layer* 0) [Convolution]_output: 3d6969df
(Unnamed Layer* 1) [Scale]_output: 3ac9c5e4
conv1: 3bb2132a
pool1: 3bb2132a
(Unnamed Layer* 5) [Convolution]_output: 3b0f3403
(Unnamed Layer* 6) [Scale]_output: 3c19f4a8
res2a_branch1: 3b39bf9e
res2a_branch2a: 3b21cb45
(Unnamed Layer* 13) [Scale]_output: 3cb1a784
res2a: 3b73bec7
(Unnamed Layer* 18) [Scale]_output: 3cce329f
"""
FACES = """TRT-8205-EntropyCalibration2
input: 3b810a13
input.1: 3c96d93c
input.4: 3d8a4553
onnx::MaxPool_331: 3d1f5c19
input.12: 3dbf4c1e
onnx::Conv_334: 3d096d7a
input.16: 3d747f27
input.44: 3c346cb4
(Unnamed Layer* 22) [Constant]_output: 3a4b050c
(Unnamed Layer* 23) [Shuffle]_output: 3a4b050c
onnx::PRelu_353: 3beaff7f
input.56: 3abf1c2a
"""
RESNET50 = """TRT-7000-EntropyCalibration2
gpu_0/pool5_1: 3ec805a6
OC2_DUMMY_0: 3d9942c2
(Unnamed Layer* 174) [Constant]_output: 3996cbd8
(Unnamed Layer* 175) [Constant]_output: 3b64f8bc
(Unnamed Layer* 176) [Matrix Multiply]_output: 3e5b5330
gpu_0/pred_1: 3e526e4b
gpu_0/softmax_1: 3afb76dc
"""
YOLO = """TRT-8601-EntropyCalibration2
images: 3b66eddc
168: 3dc6cf6e
169: 3c010a14
170: 3dbcb6fb
171: 3e890b78
172: 3c010a14
173: 3df09dcc
174: 3e085975
175: 3c003871
178: 3c99b161
197: 3cdcb87f
"""
PUBLISHED = {"resnet18": RESNET18, "faces": FACES, "resnet50": RESNET50, "yolov8": YOLO}


@pytest.mark.parametrize("text", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_published_table_is_sound(text: str) -> None:
    scales = {name: float(scale) for name, scale in parse(text).scales.items()}
    assert evidence(scales) is None


@pytest.mark.parametrize("text", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_inverse_of_a_published_table_is_found(text: str) -> None:
    scales = {name: float(np.float32(1) / scale) for name, scale in parse(text).scales.items()}
    assert evidence(scales) is not None
