"""Putting weights into a plan needs a GPU; every other fault is told before that."""

from __future__ import annotations

import pytest
from engine_graphs import residual_float

from fdda_deploy.engines.build_options import BuildOptions
from fdda_deploy.engines.gpu import gpu_present
from fdda_deploy.engines.refit import refit_plan
from fdda_deploy.engines.trt_api import TrtApi, load_api
from fdda_deploy.engines.trt_build import build_plan
from fdda_deploy.errors import BuildError, EngineError, MissingBackendError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux x86-64")
MODEL = residual_float().SerializeToString()


@pytest.fixture(scope="module")
def api() -> TrtApi:
    return load_api("tensorrt_rtx")


@pytest.fixture(scope="module")
def plan(api: TrtApi) -> bytes:
    return build_plan(MODEL, BuildOptions(), api).plan


@pytest.mark.skipif(gpu_present(), reason="the claim is about a machine without a GPU")
def test_without_a_gpu_the_way_out_is_told(api: TrtApi, plan: bytes) -> None:
    with pytest.raises(MissingBackendError, match=r"needs an NVIDIA GPU.*leave --strip out"):
        refit_plan(plan, MODEL, api)


def test_what_is_no_plan_is_refused_before_that(api: TrtApi) -> None:
    with pytest.raises(EngineError, match="is no TensorRT plan"):
        refit_plan(b"no plan", MODEL, api)


def test_what_is_no_onnx_is_refused_before_that(api: TrtApi, plan: bytes) -> None:
    with pytest.raises(BuildError, match="is not sound ONNX"):
        refit_plan(plan, b"no onnx", api)
