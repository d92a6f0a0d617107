"""Frameworks under test neither report home nor write into the user's folders. Set before any of them is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_scratch = tempfile.mkdtemp(prefix="agentguard-tests-")
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)

os.environ.update(
    CREWAI_DISABLE_TELEMETRY="true",
    CREWAI_DISABLE_TRACKING="true",
    CREWAI_STORAGE_DIR=_scratch,
    CREWAI_TRACING_ENABLED="false",
    OTEL_SDK_DISABLED="true",
)
