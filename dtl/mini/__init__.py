"""Small bases and small data that come with dtl."""
