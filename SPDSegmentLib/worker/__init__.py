"""The background worker: one protocol over stdin and stdout, a torch-free client, and the server that holds torch.

Both: ``protocol`` frames and what is in them, ``messages`` typed requests and events, ``payloads`` what they carry,
``pipes`` what waits, ``health`` signs of life and what an end means. Client: ``client`` what callers use, ``requests``
what they choose and ask, ``connection`` one worker, ``transports`` how bytes reach it. Process: ``__main__``,
``server`` its threads, ``handler`` the answers.
"""
