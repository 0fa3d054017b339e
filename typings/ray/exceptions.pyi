class RayTaskError(Exception):
    cause: Exception
