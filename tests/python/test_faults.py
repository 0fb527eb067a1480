"""Faults of files under a running model, growth over many forwards, and the end of the process."""

from __future__ import annotations

import copy
import gc
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts
from conftest import assert_same, offload_tightly, smallest_budget
from flexible_model import X, make_flexible
from model_shapes import make_stack, row_ids


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(make_stack(4).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("prefetch", ["adaptive", "aggressive", "none"])
@pytest.mark.parametrize("room", [1, 2])
def test_a_checkpoint_truncated_under_a_running_model(
    checkpoint: Path, prefetch: str, room: int
) -> None:
    model, plain = make_stack(4), make_stack(4)
    ts.offload(
        model, ram_budget=smallest_budget(model) * room, checkpoint=checkpoint, prefetch=prefetch
    )
    content = checkpoint.read_bytes()
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        os.truncate(checkpoint, len(content) // 3)
        for _ in range(2):
            with pytest.raises(ts.IoError, match=r"model\.safetensors") as raised:
                model(row_ids())
            assert raised.value.filename == str(checkpoint)
            assert isinstance(raised.value, OSError)
        with pytest.raises(ts.IoError, match=r"model\.safetensors"):
            for parameter in model.parameters():
                parameter.sum()
        checkpoint.write_bytes(content)
        with pytest.raises(ts.IoError, match="changed since it was opened"):
            model(row_ids())  # whole again, or another one: nobody knows
        again = offload_tightly(make_stack(4), checkpoint=checkpoint)
        assert_same(again(row_ids()), plain(row_ids()))


def test_a_checkpoint_rewritten_in_place_under_a_running_model(checkpoint: Path) -> None:
    model = make_stack(4)
    ts.offload(model, ram_budget=smallest_budget(model) * 2, checkpoint=checkpoint)
    content = bytearray(checkpoint.read_bytes())
    with torch.no_grad():
        model(row_ids())
        content[-1] ^= 1
        with checkpoint.open("r+b") as file:
            file.write(content)
        with pytest.raises(ts.IoError, match=r"model\.safetensors' changed since it was opened"):
            model(row_ids())


def test_a_checkpoint_replaced_under_a_running_model(checkpoint: Path, tmp_path: Path) -> None:
    """The open file is the one that was checked, whatever its name leads to now."""
    model, plain = make_stack(4), make_stack(4)
    offload_tightly(model, checkpoint=checkpoint)
    save_file(make_stack(4, seed=99).state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").replace(checkpoint)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        checkpoint.unlink()
        assert_same(model(row_ids()), plain(row_ids()))
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))


def _process() -> tuple[int, int, int]:
    process = psutil.Process()
    gc.collect()
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_200_forwards_do_not_grow(checkpoint: Path) -> None:
    model, plain = make_stack(4), make_stack(4)
    ts.offload(model, ram_budget=smallest_budget(model) * 2, checkpoint=checkpoint)
    ids = row_ids()
    with torch.no_grad():
        expected = plain(ids)
        for _ in range(20):
            model(ids)
        threads, files, rss = _process()
        held = ts.stats(model).held_bytes
        for _ in range(200):
            assert torch.equal(model(ids), expected)
        threads_now, files_now, rss_now = _process()
    assert threads_now <= threads
    assert files_now <= files
    assert rss_now - rss < 8 << 20
    assert ts.stats(model).held_bytes == held
    assert ts.stats(model).peak_held_bytes <= ts.stats(model).budget_bytes


def test_forwards_with_gradients_do_not_grow(checkpoint: Path) -> None:
    model = make_stack(4)
    offload_tightly(model, checkpoint=checkpoint)
    for _ in range(5):
        model(row_ids())
    _, _, rss = _process()
    for _ in range(100):
        model(row_ids())
    assert _process()[2] - rss < 8 << 20


def test_models_that_come_and_go_leave_nothing(checkpoint: Path) -> None:
    def once(drop: str) -> None:
        model = make_stack(4)
        ts.offload(model, ram_budget=smallest_budget(model) * 2, checkpoint=checkpoint)
        with torch.no_grad():
            model(row_ids())
        if drop == "restore":
            ts.restore(model)

    for drop in ("restore", "forget"):
        once(drop)
    threads, files, rss = _process()
    for drop in ("restore", "forget") * 10:
        once(drop)
    threads_now, files_now, rss_now = _process()
    assert threads_now <= threads
    assert files_now <= files
    assert rss_now - rss < 24 << 20


def test_an_exception_in_one_thread_leaves_the_model_to_the_others() -> None:
    model, plain = make_flexible(), make_flexible()
    offload_tightly(model)
    errors: list[BaseException] = []

    def fails() -> None:
        try:
            model(torch.zeros(2, 3))
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=fails) for _ in range(4)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        for _ in range(5):
            assert_same(model(X), plain(X))
    for thread in threads:
        thread.join(30)
    assert len(errors) == 4
    with torch.no_grad():
        assert_same(model(X), plain(X))


def run_python(body: str, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with the tests' modules at hand."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parent,
        check=False,
    )


def test_threads_that_wait_for_each_other_while_garbage_is_collected() -> None:
    """They read each other's stacks: a collection amid that ended the process (CPython 3.11)."""
    done = run_python(
        """
        import gc, sys, threading, time, torch
        from conftest import offload_tightly
        from model_shapes import make_stack, row_ids
        model, ids, over, wrong = offload_tightly(make_stack(6)), row_ids(), threading.Event(), []
        with torch.no_grad():
            expected = make_stack(6)(ids)
        def work():
            with torch.no_grad():
                while not over.is_set():
                    wrong.append(1) if not torch.equal(model(ids), expected) else None
        threads = [threading.Thread(target=work) for _ in range(3)]
        sys.setswitchinterval(1e-5)
        gc.callbacks.append(lambda phase, _: time.sleep(0) if phase == "start" else None)
        gc.set_threshold(1, 1, 1)
        [thread.start() for thread in threads]
        time.sleep(4)
        over.set()
        [thread.join(30) for thread in threads]
        print(wrong, [thread.is_alive() for thread in threads])
        """
    )
    assert done.stdout == "[] [False, False, False]\n", done.stderr
    assert done.returncode == 0


def test_daemon_threads_that_wait_for_the_model_do_not_end_the_process() -> None:
    done = run_python(
        """
        import threading, time
        from conftest import offload_tightly
        from model_shapes import make_stack, row_ids
        model, ids, inside = offload_tightly(make_stack(4)), row_ids(), threading.Event()
        def hold(*_):
            inside.set()
            time.sleep(100)
        model.blocks[0].register_forward_pre_hook(hold)
        threading.Thread(target=lambda: model(ids), daemon=True).start()
        assert inside.wait(30)
        for _ in range(3):
            threading.Thread(target=lambda: model(ids), daemon=True).start()
        time.sleep(0.3)
        """
    )
    assert (done.returncode, done.stderr.count("Fatal")) == (0, 0), done.stderr


LEAK_CHECK = """
    import gc, sys, threading, torch
    import tensorstream as ts
    from tensorstream import _native, proxy, true_values
    from model_shapes import make_stack, row_ids
    _native.set_leak_warnings(True)
    ids = row_ids()

    def use(end):
        model = make_stack(4)
        smallest = ts.estimate_memory(model).smallest_budget_bytes
        ts.analyze(model), ts.plan(model, ram_budget=smallest)
        ts.offload(model, ram_budget=smallest * 2, checkpoint=sys.argv[1], self_check=True)
        with torch.no_grad():
            model(ids)
        kept = model.blocks[0].up.weight.detach().clone()
        thread = threading.Thread(target=lambda: model(ids))
        thread.start()
        thread.join()
        ts.stats(model)
        try:
            ts.offload(make_stack(2), ram_budget=1)
        except ts.BudgetError:
            pass
        if end == "restore":
            ts.restore(model)
        elif end == "cycle":
            model.myself = [model]

    for end in ("restore", "drop", "cycle"):
        use(end)
    gc.collect()
    gc.collect()  # what a collected model let go
    # Torch keeps these classes until the process ends.
    del proxy.ParkedParameter.__torch_function__
    del true_values.ParkedWrapper.__torch_function__
    del true_values.ParkedWrapper.__torch_dispatch__
    print("done")
"""


def test_nothing_of_the_extension_leaks(checkpoint: Path) -> None:
    done = run_python(LEAK_CHECK, str(checkpoint))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
    assert "leak" not in done.stderr, done.stderr


def test_a_model_alive_at_the_end_of_the_process_is_no_fault(checkpoint: Path) -> None:
    """Its loader's thread runs while the interpreter ends."""
    done = run_python(
        """
        import sys, torch
        import tensorstream as ts
        from model_shapes import make_stack, row_ids
        model = make_stack(4)
        smallest = ts.estimate_memory(model).smallest_budget_bytes
        ts.offload(model, ram_budget=smallest * 2, checkpoint=sys.argv[1])
        model(row_ids())
        """,
        str(checkpoint),
    )
    told = [each for each in done.stderr.splitlines() if not re.search("torchao|_pytree", each)]
    assert (done.returncode, done.stdout, told) == (0, "", [])  # torchao warns as it is imported


def test_a_forked_child_gets_an_error_and_ends(checkpoint: Path) -> None:
    """Threads do not survive a fork: a forward in the child would wait for ever for the loader."""
    done = run_python(
        """
        import os, sys, signal, torch
        import tensorstream as ts
        from model_shapes import make_stack, row_ids
        torch.set_num_threads(1)
        model, ids = make_stack(4), row_ids()
        expected = make_stack(4)(ids)
        smallest = ts.estimate_memory(model).smallest_budget_bytes
        ts.offload(model, ram_budget=smallest * 2, checkpoint=sys.argv[1])
        assert torch.equal(model(ids), expected)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            for use in (model, model.blocks[1], lambda _: model.blocks[0].up.weight.sum(), ts.restore):
                try:
                    use(ids) if use is not ts.restore else use(model)
                    sys.exit(1)
                except ts.UnsupportedError as error:
                    assert "fork" in str(error), error
            again = ts.offload(make_stack(4), ram_budget=smallest * 2, checkpoint=sys.argv[1])
            assert torch.equal(again(ids), expected)
            sys.exit(7)  # by way of all destructors
        _, status = os.waitpid(child, 0)
        assert torch.equal(model(ids), expected)
        print(os.waitstatus_to_exitcode(status))
        """,
        str(checkpoint),
    )
    assert done.stdout.strip() == "7", done.stdout + done.stderr


def test_a_deep_copy_is_not_bound_to_its_original(checkpoint: Path) -> None:
    model, plain = make_stack(4), make_stack(4)
    offload_tightly(model, checkpoint=checkpoint)
    copied = copy.deepcopy(model)
    del model
    gc.collect()
    with torch.no_grad():
        assert_same(copied(row_ids()), plain(row_ids()))


def test_a_process_ends_well_right_after_a_thread_that_ran_a_forward() -> None:
    """Torch lets go of what a thread stashed once Python has counted it as ended, here 0.5 s later."""
    body = """
        import ctypes, sys, threading, time, torch
        import tensorstream as ts
        from model_shapes import make_stack, row_ids
        model = make_stack(2)
        ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes)

        class Slow:
            def __del__(self):
                time.sleep(0.5)

        def forward():
            model(row_ids())
            slow = Slow()
            references = sys.getrefcount(slow)
            torch._C._stash_obj_in_tls("slow", slow)
            if sys.getrefcount(slow) == references:  # torch up to 2.11 takes over one that is not its own
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(slow))

        threading.Thread(target=forward).start()
    """
    run = run_python(body)
    assert run.returncode == 0, run.stderr
