"""Finished pictures of a job: judged, chosen, made anew at the face."""
