"""The trained model as a service: a queue before one model, its answers, and the web application around both."""
