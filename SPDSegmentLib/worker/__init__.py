"""The background worker: one protocol over stdin and stdout, a torch-free client, and the server that holds torch.

Both: ``protocol`` frames, ``codec`` and ``messages`` typed requests and events, ``payloads`` and ``volumes`` what they
carry, ``pipes`` what waits, ``health`` signs of life. Client: ``client`` what callers use, ``requests`` what they wait
for, ``connection`` one worker, ``commands`` how it starts and ends, ``transports`` how bytes reach it. Process:
``__main__``, ``server`` its threads, ``handler`` the answers.
"""
