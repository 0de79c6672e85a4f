"""The settings of the service, ``c.Runtimes.*`` in a server's configuration."""

from __future__ import annotations

from traitlets import Bool, Enum, Float, Integer
from traitlets.config import LoggingConfigurable

from .notebooks import ON_RESUME_TAG
from .retention import Policy


class Settings(LoggingConfigurable):
    """What the parts of :class:`~jupyter_checkpoints.runtimes.Runtimes`, which is one, look up."""

    autosave_idle_timeout = Float(
        600.0,
        help="Seconds without activity after which a kernel is saved; again after as long if it "
        "works on by itself; 0: never. So whoever stops the whole server, a hub for instance, "
        "loses nothing.",
    ).tag(config=True)
    precopy_idle_timeout = Float(
        10.0,
        help="Seconds without activity after which a kernel that is saved by itself is copied "
        "ahead of its next save, which then has little left to write; 0: never.",
    ).tag(config=True)
    autosave_before_restart = Bool(
        False, help="Save a kernel before the restart that a user asks for."
    ).tag(config=True)
    on_save_failure = Enum(
        ["keep", "release"],
        "keep",
        help="What becomes of a kernel that is to be culled and cannot be saved: `keep` it "
        "running, or `release` it, and its state with it. Either way the user is told.",
    ).tag(config=True)
    verify_before_cull = Bool(
        True, help="Read a checkpoint again, whole, before its kernel is shut down."
    ).tag(config=True)
    max_concurrent_saves = Integer(
        4, min=1, help="How many kernels are saved at once; more are waiting."
    ).tag(config=True)
    shutdown_save_timeout = Float(
        60.0, help="Seconds in which all kernels have to be saved when the server stops."
    ).tag(config=True)
    danger_memory = Float(
        0.9,
        help="Save a kernel when it uses this part of its memory limit, before the limit ends it; "
        "0: never.",
    ).tag(config=True)
    danger_disk = Integer(
        512 * 2**20,
        help="Save all kernels when fewer bytes than this are free where the notebooks are; "
        "0: never.",
    ).tag(config=True)
    watch_interval = Float(15.0, help="Seconds between two looks at idle times and dangers.").tag(
        config=True
    )
    tidy_interval = Float(
        3600.0, help="Seconds between two looks at the checkpoints of deleted notebooks."
    ).tag(config=True)
    max_archive = Integer(
        16 * 2**30, help="Bytes that an archive may have to be imported by REST."
    ).tag(config=True)
    wake = Bool(
        True, help="Resume a notebook's newest checkpoint when its kernel starts next."
    ).tag(config=True)
    renew_random = Bool(
        True,
        help="In a new kernel that goes on from a checkpoint (Python only), renew OpenSSL's random "
        "numbers and the names of temporary files: two kernels must not share these.",
    ).tag(config=True)
    reseed_random = Bool(
        False,
        help="There, seed `random` and NumPy anew as well. It changes what cells compute.",
    ).tag(config=True)
    renew_host_name = Bool(
        True, help="Give a remix a host name of its own when it is resumed first."
    ).tag(config=True)
    renew_machine_id = Bool(
        True, help="Give a remix an `/etc/machine-id` of its own when it is resumed first."
    ).tag(config=True)
    renew_key = Bool(
        True,
        help="Give a remix another key for its Jupyter messages when it is resumed first (IPython "
        "kernels only: others cannot change it).",
    ).tag(config=True)
    on_resume_timeout = Float(
        60.0, help=f"Seconds that each cell with the tag `{ON_RESUME_TAG}` may take."
    ).tag(config=True)

    keep_last = Integer(10, help="Keep so many of the newest of each runtime.").tag(config=True)
    keep_hourly = Integer(0, help="Keep one for each of so many hours.").tag(config=True)
    keep_daily = Integer(7, help="Keep one for each of so many days.").tag(config=True)
    keep_weekly = Integer(4, help="Keep one for each of so many weeks.").tag(config=True)
    runtime_quota = Integer(0, help="Bytes for the checkpoints of one runtime; 0: any.").tag(
        config=True
    )
    user_quota = Integer(0, help="Bytes for all checkpoints of this user; 0: any.").tag(config=True)
    orphan_grace = Float(
        30 * 86400.0, help="Seconds that the checkpoints of a deleted notebook are kept."
    ).tag(config=True)

    def policy(self) -> Policy:
        """The configured retention."""
        return Policy(
            last=self.keep_last,
            hourly=self.keep_hourly,
            daily=self.keep_daily,
            weekly=self.keep_weekly,
            runtime_quota=self.runtime_quota,
            user_quota=self.user_quota,
        )
