"""Every verb: where it lives and its one line in the help. A new command is a file and a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """``module`` below ``drvm.cli.commands`` has a click command called ``command``."""

    name: str
    module: str
    summary: str


VERBS = (
    Verb("init", "init", "Create a repository, and a config where there is none."),
    Verb("doctor", "doctor", "Check all that drvm needs; --fix puts guests back."),
    Verb("status", "status", "Say how all of it is, in a line and an exit code."),
    Verb("vms", "vms", "List the VMs: how they are protected, what would be lost now."),
    Verb("backup", "backup", "Take a recovery point of VMs, or of image files."),
    Verb("points", "points", "List the good recovery points."),
    Verb("show", "show", "Show one recovery point."),
    Verb("restore", "restore", "Restore a machine, or its disks to a folder."),
    Verb("clone", "clone", "Restore a machine beside the original, with a new identity."),
    Verb("export", "export", "Write the disks of a point for another hypervisor."),
    Verb("import", "import_", "Take disk images of another hypervisor in, as a point."),
    Verb("files", "files", "List, read and copy files inside a recovery point."),
    Verb("serve", "serve", "Serve the disks of a point over NBD, read-only."),
    Verb("boot", "boot", "Start a machine from a point at once; its disks follow."),
    Verb("drill", "drill", "Prove that points boot: restore in isolation, check, measure."),
    Verb("report", "report", "Write the report on points and drills: HTML, JSON or JUnit."),
    Verb("pin", "pin", "Keep a point whatever the rules say, with a note."),
    Verb("unpin", "unpin", "Let the rules decide about a point again."),
    Verb("prune", "prune", "Remove the points that the rules of the policies don't keep."),
    Verb("forget", "forget", "Remove points by hand."),
    Verb("check", "check", "Is everything there, and is it what was written?"),
    Verb("gc", "gc", "Free the space of what no point needs any more."),
    Verb("lock", "lock", "Lengthen the Object Locks of what points need."),
    Verb("versions", "versions", "List what somebody changed in the bucket, and undo it."),
    Verb("key", "key", "The passphrases: list, add, change, remove; the paper form."),
    Verb("copy", "copy", "Copy points to a second repository, under its own keys."),
    Verb("index", "index", "Make the local index of stored blocks anew."),
    Verb("daemon", "daemon", "Run the policies of the config by their schedules."),
    Verb("run", "run", "Run one job of the config now, to its end."),
    Verb("demo", "demo", "See all of it on a real small VM and a real S3 server."),
    Verb("config", "config", "Check, show and generate the config file."),
    Verb("completion", "completion", "Print the completion script of a shell."),
)
"""In the order of the help: what is used most comes first."""
