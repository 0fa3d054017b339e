"""Settings → Injection: the only place that knows the user's words and the core's tensors."""

from dp_adapter.session.explain import Explanation
from dp_adapter.session.joining import Prepared
from dp_adapter.session.prepare import Session
from dp_adapter.session.scene import Crop, Scene

__all__ = ["Crop", "Explanation", "Prepared", "Scene", "Session"]
