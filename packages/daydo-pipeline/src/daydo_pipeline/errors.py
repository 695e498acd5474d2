"""What can go wrong with a run, one class per broken condition. Numbers end in 50–59."""

from __future__ import annotations

from daydo_kernel import DaydoError


class PipelineError(DaydoError):
    """Family of everything :mod:`daydo_pipeline` raises or writes into a run."""


class RunUnknown(
    PipelineError, code=40450, name="pipeline.run_unknown", zh="任务 {run_id} 不存在。", en="There is no run {run_id}."
):
    """No such run, or it is somebody else's."""

    run_id: str


class FlowUnknown(
    PipelineError, code=40451, name="pipeline.flow_unknown", zh="流程 {flow} 不存在。", en="There is no flow {flow}."
):
    """:meth:`Runs.start` was asked for a flow that was not passed to ``Runs(flows=…)``."""

    flow: str


class KeyConflict(
    PipelineError,
    code=40950,
    name="pipeline.key_conflict",
    zh="幂等键 {key} 已用于另一个请求，请换一个新键。",
    en="The key {key} already belongs to a run with another flow or other inputs; use a new key.",
):
    """One idempotency key, two different requests. The first one stands."""

    key: str


class RunFinished(
    PipelineError,
    code=40951,
    name="pipeline.run_finished",
    zh="任务 {run_id} 已结束（{state}），无法取消。",
    en="Run {run_id} has already {state}; it can no longer be cancelled.",
):
    """A cancellation came after the run had succeeded or failed."""

    run_id: str
    state: str


class InputsTooLarge(
    PipelineError,
    code=41350,
    name="pipeline.inputs_too_large",
    zh="输入过大：{size} 字节，上限 {limit} 字节；文件请先上传再传键。",
    en="The inputs take {size} bytes, the limit is {limit}; upload files first and pass their keys.",
):
    """Inputs are small JSON values; bytes travel as storage keys."""

    size: int
    limit: int


class InputsInvalid(
    PipelineError,
    code=42250,
    name="pipeline.inputs_invalid",
    zh="流程 {flow} 的输入不正确。",
    en="These inputs do not fit the flow {flow}.",
):
    """Inputs are missing, unknown or not JSON; ``fields`` says which."""

    flow: str


class FlowChanged(
    PipelineError,
    code=50050,
    name="pipeline.flow_changed",
    zh="流程 {flow} 的版本 {version} 已被使用且内容不同，请提高 version。",
    en="Flow {flow} version {version} is stored with other steps; running flows never change: raise version.",
):
    """At start-up: a flow was edited without a new version. Unfinished runs of the old shape would break."""

    flow: str
    version: int


class StepFailed(
    PipelineError,
    code=50250,
    name="pipeline.step_failed",
    zh="处理步骤 {step} 失败。",
    en="The step {step} failed.",
):
    """A step raised something unexpected; the log has the trace, the run does not."""

    step: str


class StepAbandoned(
    PipelineError,
    code=50251,
    name="pipeline.step_abandoned",
    zh="处理步骤 {step} 中断了 {times} 次，任务已停止。",
    en="The process running step {step} died {times} times; the run was given up.",
):
    """The step's worker died more often than ``max_recoveries``: the step itself may be killing it."""

    step: str
    times: int


class Overloaded(
    PipelineError,
    code=50350,
    name="pipeline.overloaded",
    zh="等待处理的任务过多（{what}），请稍后重试。",
    en="Too much is waiting already ({what}); please retry shortly.",
    retryable=True,
):
    """A bound was reached: ``max_queued`` ready steps, or ``max_streams`` open event streams."""

    what: str


class FlowUnavailable(
    PipelineError,
    code=50351,
    name="pipeline.flow_unavailable",
    zh="流程 {flow} 的版本 {version} 已下线，任务已终止。",
    en="No running process knows flow {flow} version {version} any more; the run was ended.",
):
    """A deploy removed a flow version that still had unfinished runs; their credits came back."""

    flow: str
    version: int


class StepTimedOut(
    PipelineError,
    code=50450,
    name="pipeline.step_timed_out",
    zh="处理步骤 {step} 超过 {timeout_s} 秒未完成。",
    en="The step {step} did not finish within {timeout_s} s.",
):
    """Not retryable: what happened outside is unknown, and a second call might be paid twice.

    A step that knows better sets its own, shorter timeout and raises a retryable error.
    """

    step: str
    timeout_s: float


class RunTimedOut(
    PipelineError,
    code=50451,
    name="pipeline.run_timed_out",
    zh="任务 {run_id} 超过最长等待时间，已终止。",
    en="Run {run_id} did not finish before its deadline.",
):
    """The run was older than ``run_deadline_s``; holds live a little longer than that, so the credits came back."""

    run_id: str
