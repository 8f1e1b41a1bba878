"""What operators are shown of a running deployment: as a document for programs, and as a screen."""
