"""The shell of a spoke: connection keeping, typed operations, calls, publishing, subscriptions."""

from broker.spoke.calls import Answer, Missing, RollCall
from broker.spoke.operations import Call
from broker.spoke.options import SpokeOptions
from broker.spoke.publisher import Published
from broker.spoke.spoke import Spoke, connect
from broker.spoke.subscription import Subscription

__all__ = ["Answer", "Call", "Missing", "Published", "RollCall", "Spoke", "SpokeOptions", "Subscription", "connect"]
