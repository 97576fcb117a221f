import torch, pytest
from lit_moss.codec.tokenizer import SpeechTokenizer
def stream(tok, wave, samples):
    s=tok.stream(); out=[s.push(c) for c in wave.split(samples)]; out.append(s.flush()); return torch.cat(out)
def test_s(speech, tiny_encoder):
    torch.set_num_threads(2)
    for ratio in (0.,1e-7,1e-6,1e-5,1e-4,5e-4,1e-3,2e-3,5e-3,1e-2):
      for mode in ('all','pairs'):
        enc=tiny_encoder(quantize_vocab_size=256)
        tok0=SpeechTokenizer(enc)
        with torch.no_grad():
            x=tok0._pooled(enc,speech[0][None,:25600])[0]
            n=x.norm(dim=1).mean()
            g=torch.Generator().manual_seed(1)
            noise=torch.randn(256,64,generator=g)/8*n*ratio
            base = x.mean(0,keepdim=True) if mode=='all' else x[torch.arange(256)//2%len(x)]
            enc.codebook.weight.copy_(base+noise)
        for exact in (True,False):
            tok=SpeechTokenizer(enc,exact=exact)
            bad=tot=0
            off=tok.encode(speech[:4],16000)
            single=[tok.encode(w,16000) for w in speech[:4]]
            b2=sum(int((a!=b).sum()) for a,b in zip(off,single))
            for w,o in zip(speech[:4],single):
                for k in (1,2,4,10):
                    c=stream(tok,w,1280*k); bad+=int((c!=o).sum()); tot+=len(o)
            print(ratio,mode,exact,'stream mismatch',bad,'/',tot,'batch mismatch',b2)
def test_config_mismatch(tiny_encoder,tmp_path):
    import json
    t=SpeechTokenizer(tiny_encoder()); t.save_pretrained(tmp_path)
    c=json.loads((tmp_path/'config.json').read_text()); c['quantize_vocab_size']=300; (tmp_path/'config.json').write_text(json.dumps(c))
    for f in (lambda: SpeechTokenizer.from_pretrained(tmp_path),):
        try: print('MISMATCH loads:', f().encoder.codebook.weight.shape)
        except BaseException as e: print(type(e).__name__, e)
def test_trunc(tiny_encoder,tmp_path):
    t=SpeechTokenizer(tiny_encoder()); t.save_pretrained(tmp_path)
    b=(tmp_path/'model.safetensors').read_bytes(); (tmp_path/'model.safetensors').write_bytes(b[:1000])
    try: SpeechTokenizer.from_pretrained(tmp_path)
    except BaseException as e: print(type(e).__name__, e)
    (tmp_path/'model.bin').write_bytes(b'\6\0\0\0\5')
    try: SpeechTokenizer.from_pretrained(tmp_path)
    except BaseException as e: print(type(e).__name__, e)
    (tmp_path/'model.bin').write_bytes(b'')
    try: SpeechTokenizer.from_pretrained(tmp_path)
    except BaseException as e: print(type(e).__name__, e)
    (tmp_path/'config.json').write_text('{"d_model": 3')
    try: SpeechTokenizer.from_pretrained(tmp_path)
    except BaseException as e: print(type(e).__name__, e)
    enc=tiny_encoder(quantize_vocab_size=1)
    try: SpeechTokenizer(enc).encode(torch.zeros(3000),16000)
    except BaseException as e: print(type(e).__name__, e)
