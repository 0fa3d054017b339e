"""Where each person acts: before a picture is made, and while it forms."""
