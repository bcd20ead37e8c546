"""Certificates by the openssl command line, and tokens by `oscarkv token new`, for tests of a secured cluster."""
import subprocess
import tempfile
from pathlib import Path

from cluster import BINARY


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Certificates:
    """Authorities and what they sign: NAME.pem and NAME.key in a folder of its own."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="oscarkv-certs-")
        self.folder = Path(self._folder.name)

    def cert(self, name):
        return str(self.folder / f"{name}.pem")

    def key(self, name):
        return str(self.folder / f"{name}.key")

    def authority(self, name):
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self.key(name), "-out", self.cert(name))

    def certificate(self, name, authority="ca", names="IP:127.0.0.1", days=2):
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", self.key(name), "-out", str(request))
        run("openssl", "x509", "-req", "-in", str(request), "-CA", self.cert(authority), "-CAkey", self.key(authority),
            "-CAcreateserial", "-days", str(days), "-extfile", str(extensions), "-out", self.cert(name))

    def args(self, name, ca="ca"):
        return ["--tls-cert", self.cert(name), "--tls-key", self.key(name), "--tls-ca", self.cert(ca)]

    def write(self, name, text):
        path = self.folder / name
        (self.folder / f"{name}.new").write_text(text)
        (self.folder / f"{name}.new").rename(path)
        return str(path)


def new_token(*args):
    """The token, and its line for the auth file."""
    out = subprocess.run([BINARY, "token", "new", *args], check=True, capture_output=True, text=True).stdout
    token, line = out.splitlines()
    return token, line
