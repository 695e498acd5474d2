"""Protocol simulators of the outside world; see README.md. They never touched the real providers."""

from .config import SandboxConfig
from .faults import Fault, Faults
from .sandbox import LABEL, Sandbox
from .sms import Message, SmsSimulator
from .wechat import WeChatSimulator

__all__ = ["LABEL", "Fault", "Faults", "Message", "Sandbox", "SandboxConfig", "SmsSimulator", "WeChatSimulator"]
