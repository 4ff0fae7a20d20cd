"""Word lists of the English families, written for this package. Data only."""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`hot=cold, big=small` as pairs."""
    rows = (row.partition("=") for row in text.replace("\n", " ").split(","))
    return tuple((source.strip(), target.strip()) for source, _, target in rows if source.strip())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    """apple arm baker ball basket bear bell bird boat book bottle bread bridge brother button camel candle carpet
    castle chair cheese city cloud coat coin corner cousin dancer desert doctor dragon drum eagle engine farmer
    feather field finger fire flower forest fork friend garden glass goat hammer hand harbor hat hill honey horse
    house island jacket kettle king kitchen ladder lamp lemon letter lion market melon mirror monkey moon morning
    mountain needle neighbor nurse ocean onion orange owl painter paper pencil pepper piano pillow planet pocket
    potato queen rabbit river robot sailor school shadow sheep shoulder silver singer sister spoon spring square
    stone storm summer table teacher temple tiger tomato tower train tree turtle uncle valley village violin wagon
    water whale wheel window winter wizard wolf"""
)
ADJECTIVES = _words(
    """brave bright broken calm cheap clean clever cold dark deep dry eager empty fast fresh gentle golden great happy
    heavy hidden honest hungry large lazy little lonely loud lucky modern narrow new noisy old patient plain polite
    poor proud quick quiet rare red rich rough round sharp short silent simple small smooth soft strange strong
    sweet tall thick thin tired warm weak wide wild wise young"""
)
NAMES = _words(
    """Alice Amir Anna Boris Carla Chen David Diego Elena Emma Felix Fatima Grace Hana Henry Igor Irene Jack Julia Kofi
    Laura Leo Lina Maria Martin Mei Nadia Nina Omar Oscar Paula Peter Priya Rosa Samir Sara Simon Sofia Tariq Theo
    Vera Victor Yuki Zoe"""
)
SURNAMES = _words(
    """Adams Baker Carter Dixon Evans Foster Garcia Hughes Ibrahim Jones Keller Lopez Morgan Novak Olsen Parker Quinn
    Rossi Silva Tanaka Ueda Vargas Walker Xu Young Zeller"""
)
ANTONYMS = _pairs(
    """hot=cold, big=small, tall=short, fast=slow, old=new, light=dark, happy=sad, rich=poor, strong=weak, hard=soft,
    full=empty, open=closed, early=late, wet=dry, clean=dirty, loud=quiet, deep=shallow, wide=narrow, thick=thin,
    heavy=light, true=false, good=bad, up=down, left=right, inside=outside, above=below, before=after, first=last,
    day=night, summer=winter, love=hate, win=lose, buy=sell, push=pull, arrive=depart, begin=end, laugh=cry,
    give=take, remember=forget, rise=fall, friend=enemy, north=south, east=west, success=failure, war=peace,
    question=answer, asleep=awake, alive=dead, cheap=expensive, easy=difficult, polite=rude, brave=cowardly,
    sharp=blunt, smooth=rough, sweet=bitter, tight=loose, major=minor, maximum=minimum, positive=negative,
    ancient=modern, guilty=innocent, visible=invisible, public=private, accept=reject, attack=defend,
    increase=decrease, join=separate, lend=borrow"""
)
IRREGULAR_PAST = _pairs(
    """go=went, see=saw, eat=ate, take=took, give=gave, come=came, run=ran, write=wrote, drive=drove, speak=spoke,
    break=broke, choose=chose, fall=fell, fly=flew, forget=forgot, freeze=froze, get=got, grow=grew, know=knew,
    ride=rode, ring=rang, rise=rose, shake=shook, sing=sang, sink=sank, sit=sat, steal=stole, swim=swam,
    throw=threw, wake=woke, wear=wore, win=won, begin=began, bite=bit, blow=blew, bring=brought, build=built,
    buy=bought, catch=caught, draw=drew, drink=drank, feel=felt, fight=fought, find=found, hear=heard, hold=held,
    keep=kept, leave=left, lose=lost, make=made, meet=met, pay=paid, say=said, sell=sold, send=sent, shine=shone,
    sleep=slept, spend=spent, stand=stood, teach=taught, tell=told, think=thought, understand=understood, weep=wept"""
)
IRREGULAR_PLURALS = _pairs(
    """man=men, woman=women, child=children, foot=feet, tooth=teeth, goose=geese, mouse=mice, louse=lice, ox=oxen,
    person=people, leaf=leaves, knife=knives, wife=wives, life=lives, wolf=wolves, half=halves, shelf=shelves,
    loaf=loaves, thief=thieves, calf=calves, elf=elves, scarf=scarves, cactus=cacti, fungus=fungi, nucleus=nuclei,
    radius=radii, analysis=analyses, crisis=crises, thesis=theses, oasis=oases, axis=axes, criterion=criteria,
    phenomenon=phenomena, city=cities, baby=babies, lady=ladies, party=parties, story=stories, berry=berries,
    puppy=puppies, fly=flies, country=countries"""
)
CAPITALS = _pairs(
    """France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Austria=Vienna, Poland=Warsaw,
    Hungary=Budapest, Greece=Athens, Turkey=Ankara, Russia=Moscow, Ukraine=Kyiv, Sweden=Stockholm, Norway=Oslo,
    Finland=Helsinki, Denmark=Copenhagen, Ireland=Dublin, Belgium=Brussels, Romania=Bucharest, Bulgaria=Sofia,
    Serbia=Belgrade, Croatia=Zagreb, Japan=Tokyo, China=Beijing, Thailand=Bangkok, Vietnam=Hanoi, Nepal=Kathmandu,
    Iran=Tehran, Iraq=Baghdad, Syria=Damascus, Lebanon=Beirut, Egypt=Cairo, Kenya=Nairobi, Nigeria=Abuja,
    Ghana=Accra, Senegal=Dakar, Ethiopia=Addis Ababa, Morocco=Rabat, Canada=Ottawa, Mexico=Mexico City, Cuba=Havana,
    Peru=Lima, Chile=Santiago, Argentina=Buenos Aires, Colombia=Bogota, Ecuador=Quito, Uruguay=Montevideo,
    Australia=Canberra, Cambodia=Phnom Penh, Philippines=Manila"""
)
CONTINENTS = _pairs(
    """France=Europe, Germany=Europe, Italy=Europe, Spain=Europe, Poland=Europe, Greece=Europe, Norway=Europe,
    Sweden=Europe, Ireland=Europe, Hungary=Europe, Japan=Asia, China=Asia, India=Asia, Thailand=Asia, Vietnam=Asia,
    Nepal=Asia, Iran=Asia, Pakistan=Asia, Mongolia=Asia, Malaysia=Asia, Egypt=Africa, Kenya=Africa, Nigeria=Africa,
    Ghana=Africa, Senegal=Africa, Ethiopia=Africa, Morocco=Africa, Zambia=Africa, Uganda=Africa, Mali=Africa,
    Peru=South America, Chile=South America, Argentina=South America, Brazil=South America, Colombia=South America,
    Bolivia=South America, Ecuador=South America, Uruguay=South America, Canada=North America, Mexico=North America,
    Cuba=North America, Panama=North America, Honduras=North America, Guatemala=North America"""
)
CATEGORIES = _pairs(
    """apple=fruit, banana=fruit, cherry=fruit, grape=fruit, mango=fruit, peach=fruit, pear=fruit, plum=fruit,
    dog=animal, cat=animal, horse=animal, cow=animal, lion=animal, tiger=animal, rabbit=animal, wolf=animal,
    red=color, blue=color, green=color, yellow=color, purple=color, orange=color, pink=color, brown=color,
    hammer=tool, saw=tool, drill=tool, wrench=tool, pliers=tool, chisel=tool, shovel=tool, rake=tool,
    piano=instrument, violin=instrument, flute=instrument, trumpet=instrument, guitar=instrument, cello=instrument,
    harp=instrument, drum=instrument, shirt=clothing, jacket=clothing, trousers=clothing, skirt=clothing,
    sock=clothing, glove=clothing, scarf=clothing, coat=clothing"""
)
COLORS = _pairs(
    """banana=yellow, snow=white, grass=green, blood=red, coal=black, lemon=yellow, strawberry=red, milk=white,
    leaf=green, tomato=red, sunflower=yellow, raven=black, cucumber=green, salt=white, cherry=red, spinach=green,
    egg yolk=yellow, chalk=white, lime=green, fire engine=red, carrot=orange, pumpkin=orange, sky=blue, ocean=blue,
    blueberry=blue, chocolate=brown, coffee=brown, eggplant=purple, flamingo=pink, elephant=gray, sugar=white,
    ruby=red, emerald=green, sapphire=blue, tar=black, frog=green, polar bear=white, canary=yellow, rose=red,
    mouse=gray"""
)
FRENCH = _pairs(
    """house=maison, water=eau, bread=pain, book=livre, dog=chien, cat=chat, horse=cheval, sun=soleil, moon=lune,
    tree=arbre, flower=fleur, night=nuit, day=jour, friend=ami, school=école, door=porte, window=fenêtre,
    table=table, chair=chaise, street=rue, city=ville, sea=mer, mountain=montagne, river=rivière, bird=oiseau,
    fish=poisson, cheese=fromage, milk=lait, apple=pomme, wine=vin, hand=main, head=tête, eye=œil, mother=mère,
    father=père, brother=frère, sister=sœur, king=roi, queen=reine, white=blanc, black=noir, red=rouge, green=vert,
    red wine=vin rouge, church=église, sky=ciel"""
)
SPANISH = _pairs(
    """house=casa, water=agua, bread=pan, book=libro, dog=perro, cat=gato, horse=caballo, sun=sol, moon=luna,
    tree=árbol, flower=flor, night=noche, day=día, friend=amigo, school=escuela, door=puerta, window=ventana,
    table=mesa, chair=silla, street=calle, city=ciudad, sea=mar, mountain=montaña, river=río, bird=pájaro, fish=pez,
    cheese=queso, milk=leche, apple=manzana, wine=vino, hand=mano, head=cabeza, eye=ojo, mother=madre, father=padre,
    brother=hermano, sister=hermana, king=rey, queen=reina, white=blanco, black=negro, red=rojo, green=verde,
    church=iglesia, sky=cielo"""
)
BABIES = _pairs(
    """dog=puppy, cat=kitten, cow=calf, horse=foal, sheep=lamb, goat=kid, pig=piglet, duck=duckling, goose=gosling,
    hen=chick, bear=cub, lion=cub, tiger=cub, wolf=pup, fox=kit, deer=fawn, frog=tadpole, kangaroo=joey,
    swan=cygnet, owl=owlet, eagle=eaglet, elephant=calf, whale=calf, rabbit=kit, seal=pup, bat=pup, giraffe=calf,
    zebra=foal, donkey=foal, camel=calf"""
)
FEMININE = _pairs(
    """king=queen, prince=princess, man=woman, boy=girl, father=mother, brother=sister, son=daughter, uncle=aunt,
    nephew=niece, husband=wife, actor=actress, waiter=waitress, host=hostess, god=goddess, lion=lioness, bull=cow,
    rooster=hen, emperor=empress, duke=duchess, grandfather=grandmother, grandson=granddaughter, groom=bride,
    hero=heroine, heir=heiress, wizard=witch, sir=madam, monk=nun, stallion=mare, ram=ewe, widower=widow, he=she,
    him=her, gentleman=lady, lord=lady, policeman=policewoman, stepfather=stepmother"""
)
COMPARATIVES = _pairs(
    """tall=taller, small=smaller, fast=faster, slow=slower, old=older, young=younger, cold=colder, warm=warmer,
    rich=richer, poor=poorer, strong=stronger, weak=weaker, long=longer, short=shorter, dark=darker, light=lighter,
    clean=cleaner, cheap=cheaper, deep=deeper, hard=harder, soft=softer, loud=louder, quiet=quieter, sharp=sharper,
    kind=kinder, big=bigger, hot=hotter, thin=thinner, fat=fatter, wet=wetter, sad=sadder, happy=happier,
    easy=easier, busy=busier, heavy=heavier, early=earlier, angry=angrier, funny=funnier, good=better, bad=worse,
    far=farther, large=larger, nice=nicer, wise=wiser, brave=braver"""
)
GERUNDS = _pairs(
    """walk=walking, talk=talking, play=playing, jump=jumping, read=reading, sing=singing, cook=cooking,
    paint=painting, clean=cleaning, climb=climbing, laugh=laughing, dream=dreaming, teach=teaching, learn=learning,
    wait=waiting, work=working, make=making, take=taking, write=writing, drive=driving, smile=smiling,
    dance=dancing, bake=baking, ride=riding, hide=hiding, close=closing, run=running, sit=sitting, swim=swimming,
    stop=stopping, plan=planning, cut=cutting, hit=hitting, win=winning, dig=digging, shop=shopping, fly=flying,
    cry=crying, study=studying, lie=lying, die=dying, tie=tying"""
)
AGENTS = _pairs(
    """teaches students=teacher, bakes bread=baker, flies planes=pilot, treats patients=doctor, puts out
    fires=firefighter, cuts hair=barber, grows crops=farmer, writes books=author, paints pictures=painter, designs
    buildings=architect, fixes pipes=plumber, repairs cars=mechanic, drives a taxi=driver, sells flowers=florist,
    cooks meals=chef, catches fish=fisherman, acts in plays=actor, sings songs=singer, plays the piano=pianist,
    defends clients=lawyer, takes photographs=photographer, extracts teeth=dentist, studies stars=astronomer, dances
    ballet=dancer, leads an orchestra=conductor, carries letters=mail carrier, serves food=waiter, makes
    furniture=carpenter, mines coal=miner, rules a kingdom=king, guards a prison=guard, translates texts=translator,
    keeps the library=librarian, sews clothes=tailor, sells meat=butcher, cares for animals=veterinarian"""
)
NUMBERS = _words(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen"""
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
POSITIVE = _words(
    """wonderful delightful charming excellent moving brilliant funny beautiful superb enjoyable gripping refreshing"""
)
NEGATIVE = _words(
    """terrible boring awful dull disappointing tedious clumsy dreadful annoying forgettable confusing lifeless"""
)
THINGS = _words("""film book play song meal show novel concert game story""")
