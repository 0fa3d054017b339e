"""Finished pictures: judged, compared, made anew at the face."""
