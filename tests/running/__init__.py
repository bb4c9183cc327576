"""One job runs: the runner, the keeper, the exchange with the app, the recorded request."""
