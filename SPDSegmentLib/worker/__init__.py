"""The background worker: one protocol over stdin and stdout, a torch-free client, and the server that holds torch.

``protocol`` frames · ``messages`` typed requests and events · ``client`` what callers use · ``transports`` and
``qprocess_transport`` how bytes reach the process · ``server`` and ``engine`` the process itself.
"""
