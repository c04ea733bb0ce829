"""Bytes over HTTP and NBD, and out of and into registries. Nothing that arrives is believed here.

Web servers, from below:
    deadline            connections whose every step comes to an end
    response            one request; its answer, checked before a byte of the body is believed
    multipart           an answer that holds several ranges
    ranges              which ranges travel together, how they are cut out of what arrives; no I/O
    calls               what is under way: attempts, threads, how to call them off
    http                a client for files: ranges, several connections, resumption
Registries, on top of that:
    registry_reference  how a place in a registry is written; no I/O
    credentials         user names and passwords, from where other tools keep them
    registry_auth       a registry's demand for a login, and its token server
    registry_http       requests to one registry: to whom credentials go, what answers mean
    registry_upload     one blob on its way into a registry
    registry            one repository: manifests, blobs, tags
Neighbours:
    post                a client that asks one server by POST, with a token
    http_server         a small server for strangers
Disks:
    nbd                 a disk behind an NBD server
    nbd_wire            numbers and layouts of the protocol, for client and server; no I/O
"""
