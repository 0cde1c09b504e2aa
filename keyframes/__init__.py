"""What changes from frame to frame, and what that saves."""
