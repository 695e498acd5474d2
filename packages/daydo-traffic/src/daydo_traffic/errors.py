"""Why a call was not made, or not finished. All of them are refusals that a client may read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daydo_kernel import DaydoError

if TYPE_CHECKING:
    from .decision import Decision


class TrafficError(DaydoError):
    """Anything daydo-traffic refuses with."""


class LimitExceeded(TrafficError):
    """A rule of :class:`daydo_traffic.Limits` refused; ``decision`` has the standing of every rule asked."""

    rule: str
    decision: Decision


class RateLimited(
    LimitExceeded,
    code=42945,
    name="traffic.rate_limited",
    zh="请求过于频繁，请稍后再试（{rule}）。",
    en="Too many requests; please slow down ({rule}).",
    retryable=True,
):
    """More units in a period, or a day, than ``rule`` allows; ``retry_after_s`` says when it would have been let in."""


class TooManyAtOnce(
    LimitExceeded,
    code=42946,
    name="traffic.too_many_at_once",
    zh="同时进行的请求过多，请等待其中一些完成（{rule}）。",
    en="Too many requests at once; wait for some to finish ({rule}).",
    retryable=True,
):
    """As much is under way as ``rule`` allows. When some of it ends is not known: ``retry_after_s`` is a suggestion."""


class RuleUnknown(
    TrafficError,
    code=40445,
    name="traffic.rule_unknown",
    zh="没有名为 {rule} 的限流规则。",
    en="There is no rule {rule}; add it to LimitsConfig.rules.",
):
    """A rule that the configuration does not name was asked or changed."""

    rule: str


class RuleOfAnotherKind(
    TrafficError,
    code=42245,
    name="traffic.rule_of_another_kind",
    zh="规则 {rule} 的类型不能这样更换：并发规则（concurrent）与其他规则不能互换。",
    en="The rule {rule} cannot become one of that kind: concurrent rules have an end, the others have not.",
):
    """Where a rule is asked, its end is known or it is not; changing the rule does not change that."""

    rule: str


class SwitchUnknown(
    TrafficError,
    code=40446,
    name="traffic.switch_unknown",
    zh="没有名为 {switch} 的开关。",
    en="There is no switch {switch}; add it to SwitchesConfig.switches.",
):
    """A switch that the configuration does not name was asked or changed."""

    switch: str


class Overloaded(
    TrafficError,
    code=50345,
    name="traffic.overloaded",
    zh="服务繁忙，请稍后重试。",
    en="The service is busy; please retry shortly.",
    retryable=True,
):
    """The shedder refused, to keep what it admits quick."""


class CircuitOpen(
    TrafficError,
    code=50346,
    name="traffic.circuit_open",
    zh="依赖的服务（{breaker}）暂时不可用，请稍后重试。",
    en="A service this depends on ({breaker}) is failing; please retry shortly.",
    retryable=True,
):
    """The breaker is open, or half-open with all its probes out; the call was not made."""

    breaker: str


class BulkheadFull(
    TrafficError,
    code=50347,
    name="traffic.bulkhead_full",
    zh="依赖的服务（{bulkhead}）繁忙，请稍后重试。",
    en="A service this depends on ({bulkhead}) is busy; please retry shortly.",
    retryable=True,
):
    """All slots are taken and the waiting room is full, or waiting took too long; the call was not made."""

    bulkhead: str


class FeatureOff(
    TrafficError,
    code=50348,
    name="traffic.feature_off",
    zh="该功能（{feature}）暂时关闭，请稍后再试。",
    en="This feature ({feature}) is switched off for now; please try again later.",
    retryable=True,
):
    """A switch is off. Where it states an answer of its own, clients read that."""

    feature: str
    answer_zh: str
    answer_en: str

    def text(self, locale: str) -> str:
        stated = self.answer_en if locale.startswith("en") else self.answer_zh
        return stated or super().text(locale)


class CallTimeout(
    TrafficError,
    code=50445,
    name="traffic.call_timeout",
    zh="操作超过 {seconds} 秒未完成，请稍后重试。",
    en="This did not finish within {seconds} s; please retry.",
    retryable=True,
):
    """A call was cancelled at its time limit. What it had begun elsewhere may go on there."""

    seconds: float
