"""The command ``labelmux``: the one place where server, training and client meet."""
