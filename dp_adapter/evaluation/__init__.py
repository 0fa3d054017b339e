"""The protocol of docs/evaluation.md: arms, prompts, judges, metrics, intervals, report. Makes no pictures itself."""
