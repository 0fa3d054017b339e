"""What an attachment is made of: one feature a module."""
