"""Settings → Injection: the only place that knows the user's words and the core's tensors."""

from dp_adapter.session.explanation import Explanation
from dp_adapter.session.prepared import Prepared
from dp_adapter.session.scene import Crop, Scene
from dp_adapter.session.session import Session

__all__ = ["Crop", "Explanation", "Prepared", "Scene", "Session"]
