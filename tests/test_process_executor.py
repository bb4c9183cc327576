"""Jobs in child processes: the contract, and what is particular."""

from collections.abc import Mapping
from typing import Any

import executor_app
from executor_contract import ProcessContract, short_lease  # noqa: F401  # a fixture


class TestProcessExecutor(ProcessContract):
    kind = "bgmiddleware.executors.process:ProcessExecutor"

    def options(self, **limits: Any) -> Mapping[str, Any]:
        return {"app": executor_app.NAME, **limits}
