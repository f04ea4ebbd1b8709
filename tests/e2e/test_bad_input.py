"""Bad input through the real command: a clear line, a hint, the exit code, nothing written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drvm.core.process import Processes
from drvm.core.progress import NoProgress
from drvm.core.units import MIB
from drvm.snapshot.imagefiles import ImageFile
from drvm.wiring import jobs
from tests.appliance import Appliance, make_appliance
from tests.refusals import assert_clear, refused, small_disk, unchanged

SIMILAR_IDS = ("abcd000000001000", "abcd000000002000")


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Appliance:
    """A repository in a directory: two points of ``one`` with similar ids, one of ``large``."""
    directory = tmp_path_factory.mktemp("bad-input")
    made = make_appliance(directory, f"file://{directory}/store", None)
    made.drvm("init")
    one, large = directory / "one.qcow2", directory / "large.raw"
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", str(one), "8M"], timeout_s=30)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 3M", str(one)]
    processes.run(write, timeout_s=30)
    large.write_bytes(np.random.default_rng(1).bytes(160 * MIB))
    made.drvm("-q", "backup", "--image", "--name", "large", str(large))
    with pytest.MonkeyPatch.context() as patch, made.wiring() as wiring:
        for point_id in SIMILAR_IDS:
            patch.setattr(jobs, "new_point_id", lambda chosen=point_id: chosen)
            jobs.take_image_point(wiring, "one", [ImageFile(one)], NoProgress())
    return made


@pytest.fixture
def store(appliance: Appliance) -> Iterator[Path]:
    """The repository's directory, which no test may change."""
    store = appliance.directory / "store"
    names = sorted(store.rglob("*"))
    yield store
    assert sorted(store.rglob("*")) == names


OUT = "--output=OUT"
"""A folder that must not be there afterwards."""

WRONG_REQUESTS = {
    "no such verb": (["bakup"], "no such command 'bakup'", "drvm --help"),
    "in place and elsewhere": (
        ["restore", "one", "--in-place", "--replace", OUT],
        "--output, --replace and --in-place exclude each other",
        "as it is",
    ),
    "no safety point, unsure": (
        ["restore", "one", "--in-place", "--no-safety-point"],
        "--no-safety-point needs --yes",
        "lost for good",
    ),
    "no safety point of nothing": (
        ["restore", "one", "--no-safety-point", OUT],
        "--no-safety-point means nothing alone",
        "--in-place",
    ),
    "no VMs": (["backup"], "which VMs?", "drvm vms"),
    "unknown policy": (["backup", "--policy", "none"], "no policy 'none'", "there are none"),
    "unknown point": (["show", "nothing"], "no point or VM 'nothing'", "large, one"),
    "unknown VM of points": (["points", "nothing"], "VM 'nothing'", "large, one"),
    "before the first point": (["restore", "one@2001-01-01", OUT], "as old as", "drvm points"),
    "malformed time": (["restore", "one@2026-13-01", OUT], "not a time", "2026-11-23T04:00"),
    "unknown disk": (["restore", "one", OUT, "--disk", "vdz"], "no disk vdz", "disk0"),
    "no machine to restore": (["restore", "one"], "without a VM", "--output DIR"),
    "no machine to drill": (["drill", "one"], "without a VM", "--output DIR"),
    "no points to drill": (["drill"], "which points?", "drvm drill VM"),
    "output and identity": (["restore", "one", OUT, "--replace"], "--replace and", "leave it out"),
    "output and start": (["restore", "one", OUT, "--start"], "--start and", "leave it out"),
    "bad name of a clone": (["clone", "one", "a b"], "'a b' can't be the name", "letters"),
    "report to nowhere": (["report", "--output", "/no/x.html"], "no report can", "a folder"),
    "drill report to nowhere": (["drill", "one", "--report", "/"], "no report can", "a folder"),
    "two identities": (["restore", "one", "--clone", "--replace"], "exclude", "choose"),
    "network without a name": (["restore", "one", "--map-network", "a"], "OLD=NEW", "lan="),
    "remote host": (["restore", "one", "--to", "qemu+ssh://far/system"], "image files", "DIR"),
    "password in a URI": (["restore", "one", "--to", "qemu+tls://a:b@far/"], "password", "--to"),
    "no name of the images": (["backup", "--image", "x.raw"], "needs a name", "--name NAME"),
    "bad name of the images": (["backup", "--image", "--name", "a/b", "x"], "a/b", "letters"),
    "no images": (["backup", "--image", "--name", "x"], "which image", "FILE"),
    "image and policy": (["backup", "--image", "--policy", "p", "x"], "--policy and", "--name"),
    "format without image": (["backup", "x", "--format", "raw"], "without --image", "--image"),
    "demo as JSON": (["demo", "-q", "--json"], "no --json", "leave"),
}


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_a_wrong_request_is_exit_2_and_writes_nothing(
    case: str, appliance: Appliance, store: Path, tmp_path: Path
) -> None:
    arguments, says, hint = WRONG_REQUESTS[case]
    arguments = [f"--output={tmp_path}/new/out" if word == OUT else word for word in arguments]
    result = appliance.drvm(*arguments, expect=2)
    assert_clear(result.err, says, hint)
    assert list(tmp_path.iterdir()) == []
    if "--json" not in arguments:
        assert result.out == ""


def test_a_prefix_of_several_ids_lists_them(appliance: Appliance, store: Path) -> None:
    refused(appliance, "show", "abcd", code=2, says="several points", hint=", ".join(SIMILAR_IDS))
    (point,) = appliance.json("show", SIMILAR_IDS[1][:-3])["points"]
    assert point["id"] == SIMILAR_IDS[1]


def test_an_image_that_cant_be_captured_makes_no_point(
    appliance: Appliance, store: Path, tmp_path: Path, processes: Processes
) -> None:
    qcow2 = (appliance.directory / "one.qcow2").read_bytes()
    disguised, nameless, wrong = (tmp_path / name for name in ("a.raw", "disk", "b.vmdk"))
    disguised.write_bytes(qcow2)
    nameless.write_bytes(qcow2)
    create = ["qemu-img", "create", "-q", "-f", "vmdk", str(wrong), "1M"]
    processes.run(create, timeout_s=30)
    cases = [
        (tmp_path / "absent.raw", "there is no image", "path"),
        (tmp_path, "neither a file nor a block device", "image file"),
        (disguised, "named like a raw image", "--format"),
        (nameless, "format of", "--format raw or --format qcow2"),
        (wrong, "format of", "--format raw or --format qcow2"),
    ]
    for image, says, hint in cases:
        arguments = ("backup", "--image", "--name", "bad", str(image))
        refused(appliance, *arguments, code=1, says=says, hint=hint)


def test_an_image_that_is_open_elsewhere_is_refused(
    appliance: Appliance, store: Path, processes: Processes, tmp_path: Path
) -> None:
    image, ready = appliance.directory / "one.qcow2", tmp_path / "pid"
    drive = f"if=virtio,format=qcow2,file={image}"
    argv = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16", "-nodefaults"]
    argv += ["-display", "none", "-S", "-drive", drive, "-daemonize", "-pidfile", str(ready)]
    processes.run(argv, timeout_s=60)
    try:
        arguments = ("backup", "--image", "--name", "one", str(image))
        refused(appliance, *arguments, code=1, says="is in use", hint="running machine")
    finally:
        os.kill(int(ready.read_text()), signal.SIGKILL)


def test_every_mistake_of_a_config_is_told_with_its_line(
    appliance: Appliance, store: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"repository:\n  url: file://{store}\n  pasword_file: x\nhosts: []\n"
        "policies:\n  - name: p\n    vms: [a]\n    schedule: never\n    freeze_timeout: 60s\n"
    )
    told = refused(
        appliance,
        *("--config", str(config), "backup", "x"),
        code=2,
        says="has 4 mistakes",
        hint="drvm config generate",
    ).err
    lines = [line.split(":")[0].strip() for line in told.splitlines() if line.startswith("  ")]
    assert lines == ["line 3", "line 4", "line 8", "line 9"]
    assert "did you mean password_file?" in told and "must be at most 10" in told


def test_a_wrong_passphrase_is_exit_12_and_others_are_usage_errors(
    appliance: Appliance, store: Path, tmp_path: Path
) -> None:
    wrong, empty, public = (tmp_path / name for name in ("wrong", "empty", "public"))
    for path, text in ((wrong, "hunter2\n"), (empty, "\n"), (public, "hunter2\n")):
        path.write_text(text)
        path.chmod(0o600)
    public.chmod(0o644)
    cases = [
        (12, {"DRVM_PASSWORD_FILE": str(wrong)}, "the passphrase opens none", "password_file"),
        (2, {"DRVM_PASSWORD_FILE": str(empty)}, "an empty passphrase", "one line"),
        (2, {"DRVM_PASSWORD_FILE": str(public)}, "every user of this machine", "chmod 600"),
        (2, {"DRVM_PASSWORD_FILE": str(tmp_path / "no")}, "can't read", "DRVM_PASSWORD_COMMAND"),
        (1, {"DRVM_PASSWORD_COMMAND": "sh -c 'echo hunter2 >&2; exit 3'"}, "command sh", "shell"),
        (1, {"DRVM_PASSWORD_COMMAND": "/nonexistent hunter2"}, "command /nonexist", "shell"),
        (2, {"DRVM_PASSWORD_COMMAND": "'"}, "is no command", "quotes"),
    ]
    target = tmp_path / "out"
    for code, env, says, hint in cases:
        arguments = ("restore", "one", "--output", str(target))
        told = refused(appliance, *arguments, code=code, says=says, hint=hint, env=env).err
        assert "hunter2" not in told
    assert not target.exists()


def test_output_that_is_taken_is_refused_and_kept(
    appliance: Appliance, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk0.qcow2").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with unchanged(tmp_path):
        for code, place, says, hint in (
            (1, tmp_path, "can't be restored to", "exists already: choose another folder"),
            (2, tmp_path / "file", "is no folder", "--output"),
            (1, tmp_path / "file" / "below", "can't be made", "--output"),
            (2, tmp_path / "dangling", "is no folder", "--output"),
        ):
            arguments = ("restore", "one", "--output", str(place))
            refused(appliance, *arguments, code=code, says=says, hint=hint)


def test_a_full_disk_ends_a_restore_and_leaves_nothing_on_it(
    appliance: Appliance, store: Path, tmp_path: Path, processes: Processes
) -> None:
    with small_disk(processes, tmp_path / "small") as small, unchanged(small):
        for image_format in ("raw", "qcow2"):
            refused(
                appliance,
                *("restore", "one", "--output", str(small / "a" / "b"), "--format", image_format),
                code=1,
                says="disk disk0 can't be restored",
                hint="look at the room",
            )


def interrupted(begun: str, appliance: Appliance, place: Path, *arguments: str) -> None:
    """Run a command in ``place``, and interrupt it as soon as it tells ``begun``."""
    points = appliance.json("points")
    process = subprocess.Popen(
        appliance.argv(*arguments),
        cwd=place,
        env=dict(appliance.env),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        told = ""
        while begun not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        process.send_signal(signal.SIGINT)
        told += process.stderr.read()
    assert process.returncode == 130
    assert "drvm: error: interrupted" in told and "Traceback" not in told
    assert appliance.json("points") == points
    assert not list((appliance.directory / "store").rglob("~*"))


def test_an_interrupted_backup_is_exit_130_and_leaves_nothing(
    appliance: Appliance, tmp_path: Path
) -> None:
    (tmp_path / "large.raw").symlink_to(appliance.directory / "large.raw")
    with unchanged(tmp_path):
        words = ("backup", "--image", "--name", "again", "large.raw")
        interrupted("reading disk0", appliance, tmp_path, *words)


def test_an_interrupted_restore_is_exit_130_and_goes_on(
    appliance: Appliance, tmp_path: Path
) -> None:
    """What it leaves is no image yet, and by its name drvm's."""
    words = ("restore", "large", "--output", "out")
    interrupted("restoring disk0", appliance, tmp_path, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (left,) = (tmp_path / "out").iterdir()
    assert left.name.startswith(".") and left.name.endswith(".drvm-partial")
    appliance.drvm(*words[:-1], str(tmp_path / "out"))
    (image,) = (tmp_path / "out").iterdir()
    original = (appliance.directory / "large.raw").read_bytes()
    assert image.read_bytes() == original


def test_with_json_an_error_is_one_document_on_stdout(appliance: Appliance, store: Path) -> None:
    cases = [(2, ["show", "nothing"]), (2, ["backup", "--freeze-timeout", "60"]), (2, ["nothing"])]
    for code, arguments in cases:
        result = appliance.drvm(*arguments, "--json", expect=code)
        error = json.loads(result.out)["error"]
        assert error["exit_code"] == code and error["message"] and error["hint"]
        assert result.err.startswith("drvm: error: ")
