"""A program under a pseudo-terminal, and what it shows."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

HANG_S = 120  # a guard against hangs, not a measure of speed


class Terminal:
    """Its standard streams are the terminal, except those given as files."""

    def __init__(self, argv, env=None, **streams):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "NIBBLED_SOCKET")}

        def take_terminal():
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [str(a) for a in argv], start_new_session=True, preexec_fn=take_terminal,
            stdin=streams.get("stdin", slave), stdout=streams.get("stdout", slave),
            stderr=streams.get("stderr", slave), env={**plain, "TERM": "xterm", **(env or {})})
        os.close(slave)
        self.text = b""  # all that was shown
        self.at = 0  # of it, what wait_for has passed

    def _more(self, end):
        if time.monotonic() > end:
            raise AssertionError(f"no more came after {self.text[-400:]!r}")
        ready, _, _ = select.select([self.master], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            data = b""
        self.text += data
        return bool(data)

    def wait_for(self, wanted):
        """Reads on until `wanted` was shown; returns what came before it."""
        wanted = wanted.encode() if isinstance(wanted, str) else wanted
        end = time.monotonic() + HANG_S
        while (found := self.text.find(wanted, self.at)) < 0:
            if not self._more(end):
                raise AssertionError(f"ended without {wanted!r}: {self.text[self.at:]!r}")
        before = self.text[self.at:found]
        self.at = found + len(wanted)
        return before

    def type(self, text):
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def end(self):
        """Reads to the end; returns the exit code. Lines end with \\n in `shown`."""
        end = time.monotonic() + HANG_S
        while self._more(end):
            pass
        code = self.process.wait(HANG_S)
        os.close(self.master)
        self.master = -1
        assert b"Sanitizer" not in self.text and b"runtime error" not in self.text, self.text
        return code

    @property
    def shown(self):
        return self.text.replace(b"\r\n", b"\n").decode()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
