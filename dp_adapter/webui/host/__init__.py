"""What differs between the WebUIs, and what this process shares."""
