"""What each encoder sees in the photos of a person."""
