#!/usr/bin/env bash
# Makes openssl/: keys and answers by OpenSSL 3, which the tests compare with. Run it only to
# add vectors; the files it made are kept, and the tests do not need OpenSSL.
set -euo pipefail
cd "$(dirname "$0")"
rm -rf openssl && mkdir openssl && cd openssl
hex() { od -An -v -tx1 "$@" | tr -d ' \n'; }
unhex() { perl -ne 'print pack("H*", $_)'; }
say() { echo "$*" >>vectors.txt; }
echo "# made by ../openssl.sh: verb, key, parameters, input, output" >vectors.txt
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
printf 'the quick brown fox' >"$tmp/msg"
msg=$(hex "$tmp/msg")

# raw REST: turns DER SEQUENCE{r,s} into r||s of n bytes each
raw() { openssl asn1parse -inform DER -in "$1" | awk -F: '/INTEGER/{print $NF}' | perl -ne 'chomp; s/^-//; print "0" x ('"$2"'*2-length($_)), lc $_'; }

for bits in 2048 2304 3072 4096; do
  k=rsa$bits
  openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:$bits -out $k.pem
  openssl pkey -in $k.pem -pubout -out $k.pub.pem
  openssl rsa -in $k.pem -traditional -out $k.trad.pem 2>/dev/null
  openssl rsa -in $k.pem -RSAPublicKey_out -out $k.pub.trad.pem 2>/dev/null
  say kcv $k $(openssl rsa -in $k.pem -RSAPublicKey_out -outform DER 2>/dev/null | openssl sha1 -r | cut -c1-6)
  for h in sha1 sha224 sha256 sha384 sha512; do
    openssl dgst -$h -sign $k.pem -out "$tmp/sig" "$tmp/msg"
    say sign $k rsa-pkcs $h 0 $msg $(hex "$tmp/sig")
    openssl pkeyutl -encrypt -inkey $k.pem -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:$h -in "$tmp/msg" -out "$tmp/ct"
    say decrypt $k rsa-oaep $h $msg $(hex "$tmp/ct")
    [ $h = sha1 ] && continue
    for salt in 20 $(openssl dgst -$h -binary "$tmp/msg" | wc -c); do
      openssl dgst -$h -sign $k.pem -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:$salt -out "$tmp/sig" "$tmp/msg"
      say sign $k rsa-pkcs-pss $h $salt $msg $(hex "$tmp/sig")
    done
    kek=$(openssl rand -hex 32)
    echo -n $kek | unhex >"$tmp/kek"
    openssl pkeyutl -encrypt -inkey $k.pem -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:$h -in "$tmp/kek" -out "$tmp/ct"
    openssl enc -e -id-aes256-wrap-pad -K $kek -iv a65959a6 -in "$tmp/msg" >>"$tmp/ct"
    say unwrap $k rsa-aes $h $msg $(hex "$tmp/ct")
  done
done

openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa2048.other.pem

for c in secp224r1:28:P-224 prime256v1:32:P-256 secp384r1:48:P-384 secp521r1:66:P-521 secp256k1:32:secp256k1; do
  IFS=: read -r curve n name <<<"$c"
  k=$curve
  for who in $k $k.peer; do
    openssl ecparam -name $curve -genkey -out $who.trad.pem   # EC PARAMETERS and EC PRIVATE KEY
    openssl pkcs8 -topk8 -nocrypt -in $who.trad.pem -out $who.pem
    openssl pkey -in $who.pem -pubout -out $who.pub.pem
  done
  openssl ec -in $k.pem -no_public -out $k.nopub.pem 2>/dev/null
  openssl ec -in $k.pem -conv_form compressed -out $k.comp.pem 2>/dev/null
  say kcv $k $(openssl pkey -in $k.pem -pubout -outform DER | tail -c $((2 * n + 1)) | openssl sha1 -r | cut -c1-6)
  for h in sha1 sha224 sha256 sha384 sha512; do
    openssl dgst -$h -sign $k.pem -out "$tmp/sig" "$tmp/msg"
    say sign $k ecdsa $h 0 $msg $(raw "$tmp/sig" $n)
  done
  openssl pkeyutl -derive -inkey $k.pem -peerkey $k.peer.pub.pem -out "$tmp/z"
  say ecdh $k $k.peer $(hex "$tmp/z")
done

openssl genpkey -algorithm ed25519 -out ed25519.other.pem
openssl genpkey -algorithm ed25519 -out ed25519.pem
openssl pkey -in ed25519.pem -pubout -out ed25519.pub.pem
openssl pkeyutl -sign -rawin -inkey ed25519.pem -in "$tmp/msg" -out "$tmp/sig"
say sign ed25519 ed25519 - 0 $msg $(hex "$tmp/sig")
say kcv ed25519 $(openssl pkey -in ed25519.pem -pubout -outform DER | tail -c 32 | openssl sha1 -r | cut -c1-6)

for n in 16 24 32; do
  k=$(openssl rand -hex $n)
  say kcv aes:$k $(head -c 16 /dev/zero | openssl enc -aes-$((8 * n))-ecb -K $k -nopad | hex | cut -c1-6)
  for len in 1 15 16 17 64 100; do
    d=$(openssl rand -hex $len)
    echo -n $d | unhex >"$tmp/d"
    say mac aes:$k aes-cmac - $d $(openssl mac -cipher aes-$((8 * n))-cbc -macopt hexkey:$k -in "$tmp/d" CMAC | tr 'A-F' 'a-f')
    iv=$(openssl rand -hex 16)
    say decrypt aes:$k aes-cbc-pad - $d $iv$(openssl enc -aes-$((8 * n))-cbc -K $k -iv $iv -in "$tmp/d" | hex)
    say unwrap aes:$k aes-kwp - $d $(openssl enc -e -id-aes$((8 * n))-wrap-pad -K $k -iv a65959a6 -in "$tmp/d" | hex)
  done
  for len in 16 24 64 800; do
    d=$(openssl rand -hex $len)
    echo -n $d | unhex >"$tmp/d"
    say unwrap aes:$k aes-kw - $d $(openssl enc -e -id-aes$((8 * n))-wrap -K $k -iv a6a6a6a6a6a6a6a6 -in "$tmp/d" | hex)
  done
done

for h in sha1 sha224 sha256 sha384 sha512; do
  for len in 1 20 64 300; do
    k=$(openssl rand -hex 32) info=$(openssl rand -hex 9) context=$(openssl rand -hex 5)
    say x963 $k $h $info $len $(openssl kdf -keylen $len -kdfopt digest:$h -kdfopt hexkey:$k -kdfopt hexinfo:$info -binary X963KDF | hex)
    say sp800-108 $k $h $info $context $len $(openssl kdf -keylen $len -kdfopt mac:HMAC -kdfopt mode:COUNTER -kdfopt digest:$h \
      -kdfopt hexkey:$k -kdfopt hexsalt:$info -kdfopt hexinfo:$context -binary KBKDF | hex)
  done
done

# keys that must be refused
openssl ecparam -name secp256r1 -param_enc explicit -genkey 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -out refuse-explicit-curve.pem
openssl ecparam -name brainpoolP256r1 -genkey | openssl pkcs8 -topk8 -nocrypt -out refuse-brainpool.pem
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out refuse-rsa1024.pem
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2176 -out refuse-rsa2176.pem
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3 -out refuse-exponent3.pem
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_primes:3 -out refuse-three-primes.pem
openssl genpkey -quiet -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out refuse-rsa-pss-key.pem
openssl genpkey -algorithm ed448 -out refuse-ed448.pem
openssl genpkey -algorithm x25519 -out refuse-x25519.pem
openssl pkcs8 -topk8 -in ed25519.pem -passout pass:x -out refuse-encrypted.pem
openssl rsa -in rsa2048.pem -traditional -aes128 -passout pass:x -out refuse-encrypted-trad.pem 2>/dev/null
openssl req -new -x509 -key rsa2048.pem -subj /CN=x -out refuse-certificate.pem
chmod 644 ./*
