"""Why a classifier says what it says: relevance of words, rules, baselines, and how far each can be trusted.

texts       words, human rationales, and the tokens that belong to each word
subject     the classifier under explanation: batches, probabilities of texts and of texts with words taken out
relevance   attention of the final layer under eq. 15, class gradients on it, a psi learned from people
gradients   gradients of the class score: times input, integrated, Grad-CAM
walks       attention rollout and attention flow
libraries   LIME, SHAP and Anchors, wrapped around our model
methods     every method by name, with one signature
fidelity    agreement with people
removal     what the model loses when words are taken out
rules       IF words THEN label, with bounds
page        all of it as one web page
study       forms and analysis of a user study
"""
