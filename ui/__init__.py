"""What people see: events as text and pictures, and the page around them."""
