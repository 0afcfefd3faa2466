"""The long-running parts of a node; each is driven through ports and knows no concrete room."""
