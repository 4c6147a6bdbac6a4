"""Connect-RPC, the server's half: envelope, codec and code table are pure; `server` is the one adapter to sockets."""
