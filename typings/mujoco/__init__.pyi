# MuJoCo's bindings are compiled and ship no type information; this lets pyright check everything around them.
from typing import Any

def __getattr__(name: str) -> Any: ...
