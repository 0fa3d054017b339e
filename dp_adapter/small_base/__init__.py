"""The small base that the demo and the evaluation run on: its captions, measures and files."""
