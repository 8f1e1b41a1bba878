"""`phalanx doctor`: is what a deployment needs there, before it is started? One check a file."""
