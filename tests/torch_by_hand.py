"""Files of torch, written without it, opcode by opcode, so that they can be damaged; and two that torch wrote."""

import base64
import contextlib
import io
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

from cnnjax.types import UserError
from cnnjax.weights.formats import torch as torch_format

# Two state dicts as torch.save (2.13) wrote them, then zlib and base85: a transposed weight, a bfloat16 bias, a row (in
# the zip a view of the same storage), a count.
ZIP = (
    b"c-p0v-A~g{7{<?5=*E=sp~#2Ihab2R9Q$NLA~TDb7c~)POd4;RuB&T9X?fc-h$aLQ1BsVvqIbss!dtJr=f)W0oiW5K{sZGV?HFy558)(dO}g_u@9"
    b"(tFdpgfCZ3u<K=)mYky+|}AMO~4nY9baB%ZpmM6h%)xV<RX@hNj69Rt?>XJThytDcA0+5{>|hS0E7MskfL|mDRd}At+&km?ne<Ry8Xkm~yqDYBd4"
    b"Nx@DNcN;(2eEXIe3#v&`lx(scOBvRH45kGcrMxdP!kTpqQd4^o2<pzW}7DIS}Lma~ex1fUyaLg7&UMZC09ES51=;T=&rmBh-L={p=*>f-1_NnPsf"
    b"iAm13c8gL$6)BOjW?l}3v9v#$MhnGz6xC8J8e_5q3fz%7gj_Q`W<hjU11fQYhZy;5&0mM4>|J77_L;{D&J?z^~RD=6|tnqmVixBT9j)r>_L2J==B"
    b"!fh>e$qQQ{xKFh=m=amV)>hU*o$(O83<d<R)1EXi1;uMo!9;1*9`F2vR#Za?J}*|f;3g9$ERSynYM&xOL@{^-$dVo&G%p#kYf6Rm(Go*Cwnh=rzG"
    b"xis#}$zdZ!>wVh&@sjR_&co{sq5OWmW;g^<Q|tPYtmASibHb9IF`cCV#Z~wnBqf4J0`#C_3!wTO%LWa5xiov4x_d)YG1g?tuzC0AAWbKGBtsO<dA"
    b"f2cSuWi<1AybYF-Lxi2;C!dgUpXbN>ur^GcrK_7&wM#(o2*omtrR-+9-~GuCCK+-@oimoMQj!v+Y0B^rZyLUv~^zGJGUK7n*GmwBnvWEkY(jD{p_"
    b"OKRG^s!zjJq0QTlB*;Gjfyb$T>E2y<{De<2m$wGD}TPPH=`I+flGF!-Ja>>+mj@-%>a_O05K9f&oGKCzaOy=Icj}eZTO&OrDEl&55(S3m2{~htG-"
    b"3LIwM>!TmhaED06L%92c}!lrO%9wKejj%u_IP}H8FcUf@XOs@6ZOd7G04}ueyzI)yxLfsPn+^<-Rbq!^=s39tvi2R9_>Io@~7P|cE@7aBYxu&|2w"
    b"er9LrAb#hba^Qg-;R4}#9M!0xpxYj^H?lfn6Nw6l(;!(Q*K{R{C){OA"
)
LEGACY = (
    b"c-n1}OK;Oa5Xb#W(i&RIqd<A4JROjtJWLW_2tueA^J=*41z8(=6&qYT<6Q@V6p>3S;4^UG$j9L8@DY$WFt(GDN*T$!^33f2H?y-d<(nS<{l537`t"
    b"IlJo%&39@ms}p3X(y#BuN@4v54I`bS5m}K^%dM31kB!VIV}v92R*2jX?QAbaaZ3W9IPS6XT#xK{H4Ro!pNT0VP`@D*gqLfU>O-Ez^jj5mam~O_Av"
    b"$CS<Na3fEsH9!r?_EO3PmQf&aTLDujDt$$#_$QPivB2HYt?xZ3Jx$Y!vm<FNe2o~`;aV9MtRKp;ZjE|Xg#6T;K=zC#I#hb#ZLy2r+j%9WqnLW#DH"
    b"@n?d56XF|?l{Hj$}a`1?c0*A+R72E+p?`5f&SIcsyZd$^Z+(UIWKJ(P!5|ua{UGCX%1_4j&W!H<E&n%VYb^=3%2}<ts>@ZjyZ&LwtNWZ3&aHh+XJ"
    b"|m-#M)(X%q#~$eGXtE)^vIWCzWb+31*Xc`ms#m%NfmUM(cA3AjFh8)Q3|jM4*VNQLV&?udlC@0kZTPc-oy$8_94b*X^{nq@Y6u!}SqX}6G8s}+>n"
    b"0`3gpZaRf~WF3z<2TV|p3JUk9U=Z|3P@BSod`64s_0X0%=R<rBZ?h-3qA_{Zyp&Z%sjIG9WA$vbg+1v@(hR>J{j#)dv&Xpfm*et0Qkm}yjak3?Yx"
    b"wyean959"
)
SAVED = {"zip": zlib.decompress(base64.b85decode(ZIP)), "legacy": zlib.decompress(base64.b85decode(LEGACY))}
X = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
EXPECTED = {"a.weight": X.T, "a.bias": np.array([1, -2.5, 3e38], ml_dtypes.bfloat16), "a.running_var": X[1]}


def load(path, data=None):
    """Copies of the arrays in a file."""
    if data is not None:
        path.write_bytes(data)
    with torch_format.opened(path) as content:
        arrays = {}
        for key, tensor in content.tensors.items():
            arrays[key] = tensor.read().copy()
            assert (arrays[key].shape, arrays[key].dtype) == (tensor.shape, tensor.dtype)
    return arrays


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and found[key].shape == value.shape and found[key].tobytes() == value.tobytes()
        for key, value in expected.items()
    )


def refused(path, data, *says):
    """Checks that reading ends in a UserError of one line that names the file and the fault."""
    with pytest.raises(UserError) as error:
        load(path, data)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600, message
    assert all(word in message for word in says), message


# Parts of a pickle.
def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(number):
    return b"\x8a\x10" + number.to_bytes(16, "little", signed=True)


def tup(*items):
    return b"(" + b"".join(items) + b"t"


def named(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def storage(key="0", numel=6, kind="torch.FloatStorage"):
    return tup(text("storage"), named(kind), text(key), text("cpu"), whole(numel)) + b"Q"


def tensor(size=(2, 3), stride=(3, 1), offset=0, of=None):
    size, stride = (tup(*map(whole, numbers)) for numbers in (size, stride))
    hooks = named("collections.OrderedDict") + b")R"
    args = tup(of or storage(), whole(offset), size, stride, b"\x89", hooks)
    return named("torch._utils._rebuild_tensor_v2") + args + b"R"


def dictionary(*items):
    return b"}(" + b"".join(items) + b"u"


def pickled(*items, protocol=2):
    return bytes([0x80, protocol]) + b"".join(items) + b"."


DIMS, STEPS = tup(whole(2), whole(3)), tup(whole(3), whole(1))


GOOD = pickled(dictionary(text("w"), tensor()))


def archive(entries, method=zipfile.ZIP_STORED):
    """Bytes of a zip archive of entries: name → bytes."""
    with io.BytesIO() as file:
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as zipped:
            warnings.simplefilter("ignore")  # about names that occur twice
            for name, data in entries.items() if isinstance(entries, dict) else entries:
                zipped.writestr(name, data)
        return file.getvalue()


def zipped(data_pkl, method=zipfile.ZIP_STORED, **storages):
    storages = storages or {"0": X.tobytes()}
    data = {f"m/data/{key.removeprefix('s')}": value for key, value in storages.items()}
    return archive({"m/data.pkl": data_pkl, "m/byteorder": b"little", **data}, method)


def legacy(data_pkl=GOOD, keys=("0",), numel=6, info=None, tail=b""):
    head = [pickle.dumps(value, 2) for value in (torch_format.MAGIC, torch_format.PROTOCOL)]
    info = info or pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    keys = keys if isinstance(keys, bytes) else pickle.dumps(list(keys), 2)
    return b"".join([*head, info, data_pkl, keys, struct.pack("<q", numel), X.tobytes(), tail])


@contextlib.contextmanager
def frugal(mebibytes, seconds):
    """Fails if the block uses more memory at any time, or more seconds of the processor."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
        assert time.process_time() - begin < seconds
    finally:
        tracemalloc.stop()
