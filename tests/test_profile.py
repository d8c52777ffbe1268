"""What the profile of a batch counts."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dtp.run.training import _choose_algorithms
from tests.runs import ROOT


def test_only_kernels_copies_and_fills_count_as_work_of_the_device(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from profile_step import Row, on_the_device

    events = [
        {"ph": "M", "name": "process_name"},
        {"cat": "kernel", "name": "gemm", "dur": 3.0},
        {"cat": "kernel", "name": "gemm", "dur": 4.5},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 1.0},
        {"cat": "gpu_memset", "name": "Memset", "dur": 0.5},
        {"cat": "gpu_user_annotation", "name": "ProfilerStep#1", "dur": 100.0},
        {"cat": "user_annotation", "name": "ProfilerStep#1", "dur": 100.0},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "dur": 20.0},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 20.0},
    ]
    found = {row.name: row for row in on_the_device(events)}
    assert found == {
        "gemm": Row("gemm", 7.5, 2),
        "Memcpy HtoD": Row("Memcpy HtoD", 1.0, 1),
        "Memset": Row("Memset", 0.5, 1),
    }


def test_a_trace_of_the_cpu_has_nothing_of_a_device(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from profile_step import on_the_device, trace_of

    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("annotated"):
        torch.ones(3).add(1)
    events = trace_of(profiler)
    assert any(event["name"] == "annotated" for event in events) and on_the_device(events) == []


@pytest.fixture
def flags_as_before():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    yield
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.parametrize(("device", "accelerator"), [("cuda", "gpu"), ("cpu", "cpu")])
def test_benchmarks_measure_with_the_algorithms_that_runs_take(device, accelerator, monkeypatch, flags_as_before):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from engines import choose_algorithms

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    _choose_algorithms(accelerator, False)
    expected = cudnn.benchmark
    cudnn.benchmark = not expected
    for tf32 in (True, False):
        choose_algorithms(torch.device(device), tf32)
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (expected, tf32, tf32)
